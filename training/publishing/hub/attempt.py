"""One attempt to publish: what has been sent so far and, if it fails, a message with all that a repeat needs."""

import shlex
from pathlib import Path

from training.command import command_name
from training.errors import UserError
from training.publishing.folder.layout import MAIN, PublishError
from training.publishing.hub.token import redact

_REASONS = {
    401: "the token is missing, wrong or expired; log in with `hf auth login`, or pass another --hub_token",
    403: "the token may not write there; use one with write access to that namespace, or name another repo",
    404: "no such repo or branch is visible to the token",
    409: "someone else changed the repo in the meantime; see what came in, then repeat",
    412: "someone else changed the repo in the meantime; see what came in, then repeat",
    429: "the Hub limits the rate of requests; wait, then repeat",
}


class Attempt:
    """Context in which any error of the Hub client becomes a `PublishError`.

    Attributes:
        sent: files whose content is at the Hub already, though not committed.
    """

    def __init__(self, folder: Path, repo_id: str, branch: str, names: list[str], token: str | None = None):
        self.token = token
        self.folder, self.repo_id, self.branch, self.names = folder, repo_id, branch, names
        self.sent: list[str] = []

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, _kind, error: BaseException | None, _traceback) -> None:
        # The client raises HTTP errors, network errors of its HTTP library, OS errors, and RuntimeErrors around these.
        if isinstance(error, Exception) and not isinstance(error, UserError):
            raise PublishError(self.explain(error)) from error

    def explain(self, error: Exception) -> str:
        """Why it failed, what is missing, and the command to repeat it; never the token."""
        missing = [name for name in self.names if name not in self.sent]
        sent = f"At the Hub already, and not sent again: {', '.join(self.sent)}. " if self.sent else ""
        command = [*command_name("training.publish").split(), str(self.folder), "--repo_id", self.repo_id]
        command += ["--revision", self.branch] if self.branch != MAIN else []
        return redact(
            f"{self.folder} was not published to {self.repo_id} ({self.branch}): {reason(error)}. The model is whole "
            f"in {self.folder}, and the repo was not left half changed: all of it comes in one commit, at the end. "
            f"{sent}Missing: {', '.join(missing)}. Repeat with: {shlex.join(command)}",
            self.token,
        )


def reason(error: BaseException) -> str:
    """One line for what went wrong, with the fix where there is one."""
    cause: BaseException | None = error
    innermost = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            said = getattr(cause, "server_message", None)
            said = f" ({' '.join(said.split())})" if said else ""
            known = _REASONS.get(status, "repeat it later" if status >= 500 else "the Hub refused")
            return redact(f"HTTP {status}: {known}{said}")
        cause, innermost = cause.__cause__, cause
    return redact(f"{type(innermost).__name__}: {' '.join(str(innermost).split())}")

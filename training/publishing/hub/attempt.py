"""Error messages for a failed push to the Hub, with the uploaded and the missing files and the command to repeat it."""

import shlex
from pathlib import Path

from training.command import command_name
from training.errors import UserError
from training.publishing.folder.layout import MAIN, PublishError
from training.publishing.hub.token import redact

_REASONS = {
    401: "the token is missing, wrong or expired; log in with `hf auth login`, or pass another --hub_token",
    403: "the token has no write access; use one with write access to that namespace, or give another repo",
    404: "the repo or branch does not exist, or the token has no access to it",
    409: "someone else changed the repo in the meantime; check the changes, then repeat",
    412: "someone else changed the repo in the meantime; check the changes, then repeat",
    429: "too many requests; wait, then repeat",
}


class Attempt:
    """Context manager that turns errors of the Hub client into a `PublishError`.

    Attributes:
        sent: files that are uploaded but not committed yet.
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
        """Message with the reason, the missing files and the command to repeat the push, without the token."""
        missing = [name for name in self.names if name not in self.sent]
        sent = f"Already uploaded, and not sent again: {', '.join(self.sent)}. " if self.sent else ""
        command = [*command_name("training.publish").split(), str(self.folder), "--repo_id", self.repo_id]
        command += ["--revision", self.branch] if self.branch != MAIN else []
        return redact(
            f"{self.folder} was not published to {self.repo_id} ({self.branch}): {reason(error)}. The model is "
            f"complete in {self.folder}, and the repo has no partial update, because all files come in one commit. "
            f"{sent}Missing: {', '.join(missing)}. Repeat with: {shlex.join(command)}",
            self.token,
        )


def reason(error: BaseException) -> str:
    """Describe an error of the Hub client in one line, with the fix if one is known."""
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

"""Upload of the published layout to the Hub, at the end of training or by `python -m training.publish`."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import validate_repo_id

from training.options.options import Options
from training.publishing.card.card import is_untouched, refresh_card
from training.publishing.folder.layout import CARD, MAIN, PublishError, is_weight_file, stale_files
from training.publishing.folder.published_folder import published_files
from training.publishing.hub.attempt import Attempt, reason
from training.publishing.hub.token import clean_token, redact

logger = logging.getLogger(__name__)
MESSAGE = "Add a student distilled by ADD"


@dataclass(frozen=True)
class Published:
    """Result of a push. `card_kept`: whether an edited card on the Hub was kept."""

    repo_id: str
    branch: str
    commit: str
    files: list[str]
    card_kept: bool


def repo_name(options: Options) -> str:
    """The repo that a run pushes to. Without a namespace, it belongs to the owner of the token."""
    return options.hub.hub_model_id or Path(os.path.abspath(options.output.output_dir)).name


def check_push(options: Options) -> str:
    """Create the run's repo and check for write access before training starts. Returns the repo id.

    Raises:
        PublishError: there is no token, no permission or no network.
    """
    token, private = clean_token(options.hub.hub_token), options.hub.hub_private_repo
    api = HfApi(token=token)
    try:
        check_repo_id(repo_name(options), "--hub_model_id")
        repo_id = api.create_repo(repo_name(options), private=private, exist_ok=True).repo_id
        _refuse_public(api.model_info(repo_id), private)
        # This asks how a file would be uploaded, which the Hub only answers with write access. Nothing is sent.
        api.preupload_lfs_files(repo_id, [CommitOperationAdd(CARD, b"x")])
    except PublishError:
        raise
    except Exception as error:  # HTTP errors, and whatever else the client raises
        why = redact(reason(error), token)
        raise PublishError(
            f"--push_to_hub got True, but {repo_name(options)} cannot be pushed to: {why}. Training was not started"
        ) from error
    return repo_id


def check_repo_id(repo_id: str, flag: str) -> None:
    """Check that `repo_id` is a valid name of a repo, without a network.

    Raises:
        PublishError: the name is invalid; the message names the flag and the rule.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{flag} got {repo_id!r}: {' '.join(str(error).split())}") from None


def push_published(options: Options) -> str:
    """Upload the published layout of a run in one commit. Returns the repo id.

    Raises:
        PublishError: the upload failed; the model stays in `--output_dir`.
    """
    hub, folder = options.hub, options.output.output_dir
    return publish(folder, repo_name(options), token=hub.hub_token, private=hub.hub_private_repo).repo_id


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    branch: str = MAIN,
    overwrite_card: bool = False,
    message: str = MESSAGE,
) -> Published:
    """Upload the published layout of `folder`, and no other files, in one commit. It may be repeated.

    Args:
        folder: output folder of a finished run.
        repo_id: repo to push to, created if necessary. Without a namespace, it belongs to the owner of the token.
        token: token with write access; None uses that of `hf auth login`.
        private: whether a new repo is private. True refuses an existing public repo.
        branch: branch to push to, created from main if necessary.
        overwrite_card: whether to replace a card that was edited on the Hub.
        message: commit message.

    Raises:
        PublishError: the folder is not complete, or the upload failed. The message has the reason, the files that are
            missing on the Hub, and the command to repeat the push.
    """
    folder, token = Path(folder), clean_token(token)
    check_repo_id(repo_id, "--repo_id")
    names = published_files(folder)
    api = HfApi(token=token)
    with Attempt(folder, repo_id, branch, names, token) as attempt:
        attempt.repo_id = repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if branch != MAIN:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        head = api.model_info(repo_id, revision=branch)
        _refuse_public(head, private)
        refresh_card(folder, repo_id, branch)
        attempt.names = published_files(folder, hashes=False)  # hashes were compared above
        card_kept = CARD in attempt.names and not overwrite_card and _is_edited(api, head, folder / CARD)
        if card_kept:
            attempt.names.remove(CARD)
            logger.warning("The card of %s was edited on the Hub and is kept; --overwrite_card replaces it", repo_id)
        commit = _upload(api, attempt, head, message)
    logger.info("Published %s (%s, commit %s): %s", repo_id, branch, commit, ", ".join(attempt.names))
    return Published(repo_id, branch, commit, attempt.names, card_kept)


def _upload(api: HfApi, attempt: Attempt, head: ModelInfo, message: str) -> str:
    """Upload the weights one by one, then commit. Returns the hash of the commit."""
    operations = {name: CommitOperationAdd(name, attempt.folder / name) for name in attempt.names}
    for name in filter(is_weight_file, attempt.names):
        api.preupload_lfs_files(attempt.repo_id, [operations[name]], revision=attempt.branch)
        attempt.sent.append(name)
    stale = stale_files((sibling.rfilename for sibling in head.siblings or ()), attempt.names)
    return api.create_commit(
        attempt.repo_id,
        [*operations.values(), *map(CommitOperationDelete, stale)],
        commit_message=message,
        revision=attempt.branch,
        # The stale files and the state of the card were determined at this commit.
        parent_commit=head.sha,
    ).oid


def _is_edited(api: HfApi, head: ModelInfo, local: Path) -> bool:
    """Whether the card in the repo was edited and differs from the one to be uploaded."""
    if CARD not in (sibling.rfilename for sibling in head.siblings or ()):
        return False
    remote = Path(api.hf_hub_download(head.id, CARD, revision=head.sha)).read_bytes()
    return remote != local.read_bytes() and not is_untouched(remote.decode("utf-8", errors="replace"))


def _refuse_public(repo: ModelInfo, private: bool | None) -> None:
    if private and repo.private is False:
        raise PublishError(
            f"--private got True: {repo.id} already exists and is public, so nothing was pushed. Make it private in "
            "its settings on the Hub, or give another repo"
        )

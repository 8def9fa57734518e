"""The published layout on the Hub: at the end of training with `--push_to_hub`, or of a finished run by `command`."""

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
    """What is now on the Hub. `card_kept`: the card there had been edited, and was left alone."""

    repo_id: str
    branch: str
    commit: str
    files: list[str]
    card_kept: bool


def repo_name(options: Options) -> str:
    """The repo that a run pushes to; without a namespace it is the token owner's."""
    return options.hub.hub_model_id or Path(os.path.abspath(options.output.output_dir)).name


def check_push(options: Options) -> str:
    """Create the run's repo and see that it can be written to, before hours of training. Returns the repo id.

    Raises:
        PublishError: no token, no permission, no network.
    """
    token, private = clean_token(options.hub.hub_token), options.hub.hub_private_repo
    api = HfApi(token=token)
    try:
        check_repo_id(repo_name(options), "--hub_model_id")
        repo_id = api.create_repo(repo_name(options), private=private, exist_ok=True).repo_id
        _refuse_public(api.model_info(repo_id), private)
        # Asks how this file would be uploaded: the Hub answers only accounts with write access. Nothing is sent.
        api.preupload_lfs_files(repo_id, [CommitOperationAdd(CARD, b"x")])
    except PublishError:
        raise
    except Exception as error:  # HTTP errors, and whatever else the client raises
        why = redact(reason(error), token)
        raise PublishError(
            f"--push_to_hub got True, but {repo_name(options)} cannot be pushed to: {why}. Training has not begun"
        ) from error
    return repo_id


def check_repo_id(repo_id: str, flag: str) -> None:
    """Refuse what cannot be the name of a repo, without a network.

    Raises:
        PublishError: names the flag and the rule.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{flag} got {repo_id!r}: {' '.join(str(error).split())}") from None


def push_published(options: Options) -> str:
    """Upload the published layout of a run in one commit. Returns the repo id.

    Raises:
        PublishError: the Hub refused; the model stays in `--output_dir`.
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
    """Upload the published layout of `folder`, and nothing else of it, in one commit. May be repeated at will.

    Args:
        folder: the output folder of a finished run.
        repo_id: created where it does not exist; without a namespace it is the token owner's.
        token: to write with; the one of `hf auth login` if None.
        private: of a new repo. True refuses a repo that exists and is public.
        branch: made from main where it does not exist.
        overwrite_card: replace a card on the Hub even though someone has edited it.

    Raises:
        PublishError: the folder is not whole, or the Hub refused; with the reason, what is missing at the Hub, and the
            command to repeat it.
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
        attempt.names = published_files(folder, hashes=False)  # the sums were compared above
        card_kept = CARD in attempt.names and not overwrite_card and _is_edited(api, head, folder / CARD)
        if card_kept:
            attempt.names.remove(CARD)
            logger.warning("The card of %s has been edited there and is kept; --overwrite_card replaces it", repo_id)
        commit = _upload(api, attempt, head, message)
    logger.info("Published %s (%s, commit %s): %s", repo_id, branch, commit, ", ".join(attempt.names))
    return Published(repo_id, branch, commit, attempt.names, card_kept)


def _upload(api: HfApi, attempt: Attempt, head: ModelInfo, message: str) -> str:
    """Send the weights one by one, then commit. Returns the commit's sha."""
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
        # What to delete and whether the card is edited was judged at this commit.
        parent_commit=head.sha,
    ).oid


def _is_edited(api: HfApi, head: ModelInfo, local: Path) -> bool:
    """Whether the repo has a card that is neither ours nor the one to be uploaded."""
    if CARD not in (sibling.rfilename for sibling in head.siblings or ()):
        return False
    remote = Path(api.hf_hub_download(head.id, CARD, revision=head.sha)).read_bytes()
    return remote != local.read_bytes() and not is_untouched(remote.decode("utf-8", errors="replace"))


def _refuse_public(repo: ModelInfo, private: bool | None) -> None:
    if private and repo.private is False:
        raise PublishError(
            f"--private got True: {repo.id} exists already and is public, so nothing was pushed. Make it private in "
            "its settings on the Hub, or name another repo"
        )

"""Crash-safe replacement of a published student by a new one.

A student is written into a temporary folder, flushed to the disk, verified, and listed with its hashes; then the folder
is renamed to `.new-student`. This rename commits the replacement. Before it, the old student is not changed; after it,
`finish_replacement` moves the files, and continues if the process is killed in between. `model_index.json` is removed
first and moved last, so that no loader can read a mixture of two students.

Files that this program did not write are never removed or overwritten; a file that is in the way is moved to
`replaced-N/`.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from training.checkpoints.folder_lock import lock_folder
from training.checkpoints.manifest import sync, write_text
from training.publishing.folder.layout import CARD, INDEX, RUN_FILE, PublishError, is_published_name
from training.publishing.folder.verification import FILES, describe_files, is_unchanged, read_files, verify_files

logger = logging.getLogger(__name__)
READY = ".new-student"
UNFINISHED = re.compile(r"\.tmp-student-[0-9a-f]{8}")
Entries = dict[str, dict[str, Any]]


@contextlib.contextmanager
def replacing_student(folder: str | Path, added_to: Entries | None = None) -> Iterator[Path]:
    """Context manager that yields an empty folder for a new student, and replaces the old one when it exits.

    Args:
        folder: folder of the student, created if necessary; an older student in it is replaced.
        added_to: existing files to keep, as entries of `add_files.json`; the new files are added to them. None replaces
            the older student completely.

    Raises:
        PublishError: the new student cannot be written or is not complete; the older one is not changed.
        FolderInUse: another process is writing into `folder`.
    """
    folder = Path(folder)
    with lock_folder(folder, "--output_dir"):
        finish_replacement(folder)
        for path in folder.iterdir():  # from killed processes, which do not hold the lock any more
            if UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        stage = folder / f".tmp-student-{uuid.uuid4().hex[:8]}"
        try:
            stage.mkdir()
            yield stage
            _seal(folder, stage, added_to or {})
            os.replace(stage, folder / READY)
            sync(folder)
        except (OSError, SafetensorError) as error:
            raise PublishError(
                f"cannot write the student to {folder}: {error}. Existing files were not changed. Free disk space, or "
                "make the folder writable, and repeat"
            ) from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)  # does not exist any more if it was renamed
        finish_replacement(folder)


def _seal(folder: Path, stage: Path, kept: Entries) -> None:
    """Verify the new files, flush them to the disk, and write the list of new and kept files."""
    names = [path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()]
    verify_files(stage, names)
    for name in names:
        sync(stage / name)
        _refuse_obstacle(folder, name)
    entries = {name: entry for name, entry in kept.items() if name not in names} | describe_files(stage, names)
    write_text(stage / FILES, json.dumps({"files": entries}, indent=1, sort_keys=True))
    for path in [*(p for p in stage.rglob("*") if p.is_dir()), stage]:
        sync(path)


def _refuse_obstacle(folder: Path, name: str) -> None:
    """Raise a PublishError if a file could not be moved later, or would be moved out of the folder by a link."""
    target = folder / name
    for parent in (p for p in target.parents if p != folder and folder in p.parents):
        if parent.is_symlink() or (parent.exists() and not (parent.is_dir() and os.access(parent, os.W_OK))):
            raise PublishError(f"{parent} is in the way: it is not a regular, writable folder. Move it away")
    if target.is_dir() and not target.is_symlink():
        raise PublishError(f"{target} is in the way: it is a folder. Move it away")


def finish_replacement(folder: str | Path) -> None:
    """Move a committed student into its place, if there is one. It can be repeated after a crash.

    Raises:
        PublishError: a file cannot be moved.
        FolderInUse: another process is writing into `folder`.
    """
    folder = Path(folder)
    if not (folder / READY).is_dir():
        return
    with lock_folder(folder, "--output_dir"):
        try:
            _move(folder, folder / READY)
        except OSError as error:
            raise PublishError(
                f"the student in {folder / READY} is complete, but cannot be moved to {folder}: {error}. Fix this and "
                "repeat"
            ) from error


def _move(folder: Path, ready: Path) -> None:
    new = read_files(ready)
    if new is not None:  # otherwise the list has been moved already, and before it all files but the index
        _move_all_but_index(folder, ready, read_files(folder), new)
        os.replace(ready / FILES, folder / FILES)
    if (ready / INDEX).exists():
        os.replace(ready / INDEX, folder / INDEX)
    sync(folder)
    shutil.rmtree(ready)


def _move_all_but_index(folder: Path, ready: Path, old: Entries | None, new: Entries) -> None:
    if INDEX not in new or (ready / INDEX).exists():
        _clear(folder, INDEX, old)
    for name in sorted(new, key=lambda name: (name == RUN_FILE, name)):
        if name != INDEX and (ready / name).exists():
            _clear(folder, name, old)
            (folder / name).parent.mkdir(exist_ok=True)
            os.replace(ready / name, folder / name)
    for name, entry in (old or {}).items():
        if name not in new and (folder / name).is_file() and is_unchanged(folder / name, entry):
            (folder / name).unlink()
    for parent in {(folder / name).parent for name in new}:
        sync(parent)


def _clear(folder: Path, name: str, old: Entries | None) -> None:
    """Clear the path of a file: files of this program are replaced, others are moved to `replaced-N/`."""
    path = folder / name
    if not path.is_symlink() and not path.exists():
        return
    if old is None:  # a folder of an earlier version, which has no list
        is_ours = (folder / RUN_FILE).is_file() and (is_published_name(name) or name == RUN_FILE)
    else:
        # The card and the record may be rewritten, so only their names have to be listed; `output` keeps edited cards.
        is_ours = name in old and (name in (CARD, RUN_FILE) or is_unchanged(path, old[name]))
    if is_ours:
        if name == INDEX:
            path.unlink()
        return  # the new file replaces it with one rename
    aside = next(p for n in range(1, 10_000) if not (p := folder / f"replaced-{n}" / name).exists())
    aside.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, aside)
    logger.warning("%s was not written by this program and was moved to %s to make room for the student", path, aside)

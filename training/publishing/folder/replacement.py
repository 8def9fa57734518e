"""Putting a student in the place of an older one: whole and verified before the first old file goes.

A student is written into a folder aside, forced to the disk, verified, listed with its sums, and the folder renamed to
`.new-student`: that rename is the one moment at which the new student takes the old one's place. Up to it the old one
is untouched; after it the files only have to be moved, which `finish_replacement` does, and does again from where it
was if the process is killed. `model_index.json` goes first and comes last, so that no loader meets a mixture.

Files that this program did not write are never removed or overwritten: what is in the way moves to `replaced-N/`.
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
    """Context that yields an empty folder to write a student to, and puts it in place at its end.

    Args:
        folder: of the student, made if it is not there; an older one in it is replaced.
        added_to: files that stay as they are, by their entries in `add_files.json`: what is written is added to them.
            None replaces the older student altogether.

    Raises:
        PublishError: the new student cannot be written, or is not whole. The older one is as it was.
        FolderInUse: another process writes into `folder`.
    """
    folder = Path(folder)
    with lock_folder(folder, "--output_dir"):
        finish_replacement(folder)
        for path in folder.iterdir():  # of processes that were killed; the lock says that they have ended
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
                f"cannot write the student to {folder}: {error}. What was there before is as it was. Make room, or "
                "see that the folder is writable, and repeat"
            ) from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)  # nothing has that name once it is renamed
        finish_replacement(folder)


def _seal(folder: Path, stage: Path, kept: Entries) -> None:
    """Force what was written to the disk, verify it, and list it beside what is kept."""
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
    """Before the point of no return: what would stop a file from being moved, or lead it out of the folder."""
    target = folder / name
    for parent in (p for p in target.parents if p != folder and folder in p.parents):
        if parent.is_symlink() or (parent.exists() and not (parent.is_dir() and os.access(parent, os.W_OK))):
            raise PublishError(f"{parent} is in the way: not a folder of its own that can be written to. Move it away")
    if target.is_dir() and not target.is_symlink():
        raise PublishError(f"{target} is in the way: it is a folder. Move it away")


def finish_replacement(folder: str | Path) -> None:
    """Move a student that is ready into its place; nothing where none is. May be repeated after a crash.

    Raises:
        PublishError: a file cannot be moved.
        FolderInUse: another process writes into `folder`.
    """
    folder = Path(folder)
    if not (folder / READY).is_dir():
        return
    with lock_folder(folder, "--output_dir"):
        try:
            _move(folder, folder / READY)
        except OSError as error:
            raise PublishError(
                f"the student in {folder / READY} is whole, but cannot be moved to {folder}: {error}. Repeat when "
                "that is fixed"
            ) from error


def _move(folder: Path, ready: Path) -> None:
    new = read_files(ready)
    if new is not None:  # else the list is in its place, and all but the index with it
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
    """Make the place of a file free: what this program wrote is removed, anything else moves to `replaced-N/`."""
    path = folder / name
    if not path.is_symlink() and not path.exists():
        return
    if old is None:  # a folder of an earlier version, which kept no list
        is_ours = (folder / RUN_FILE).is_file() and (is_published_name(name) or name == RUN_FILE)
    else:
        # A rewritten card or record is ours as long as its name is in the list; `output` keeps edited cards.
        is_ours = name in old and (name in (CARD, RUN_FILE) or is_unchanged(path, old[name]))
    if is_ours:
        if name == INDEX:
            path.unlink()
        return  # the new file takes its place in one rename
    aside = next(p for n in range(1, 10_000) if not (p := folder / f"replaced-{n}" / name).exists())
    aside.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, aside)
    logger.warning("%s was not written by this program, and the new student needs its name: it is now %s", path, aside)

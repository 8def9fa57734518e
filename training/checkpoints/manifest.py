"""Folders whose files can be proved whole: a manifest of sizes and SHA-256 sums, written last and synced."""

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from training.errors import UserError

MANIFEST, STATE = "manifest.json", "state.json"
# No other kind of file is ever read from a checkpoint, and none from outside its folder.
FILE_NAME = re.compile(r"\w[\w.-]*\.(safetensors|json)")


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be written, or is not what was written."""


def to_json(value: Any) -> str:
    """`value` as JSON text, without a last newline: no file made of it can be cut short and stay JSON.

    Raises:
        TypeError, ValueError: JSON cannot hold `value` (NaN, other types), or would change it (keys not strings).
    """
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    if json.loads(text) != as_lists(value):
        raise TypeError("the keys of dictionaries must be strings")
    return text


def as_lists(value: Any) -> Any:
    """`value` with its tuples as lists, as it comes back from JSON."""
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return [as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def sync(path: Path) -> None:
    """Force a file's content, or a folder's entries, from the system's cache to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file and force it to the disk."""
    path.write_text(text, encoding="utf-8")
    sync(path)


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    os.replace(aside, path)
    sync(path.parent)


def write_manifest(folder: Path) -> None:
    """Describe every file of `folder`. All of them must have been synced."""
    entries = {p.name: {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in folder.iterdir()}
    write_text(folder / MANIFEST, to_json(entries))
    sync(folder)


def verify_manifest(folder: Path, hashes: bool = True) -> list[str]:
    """Compare a folder with its manifest; returns the names in it. Other files are ignored.

    Args:
        folder: the checkpoint.
        hashes: False compares only sizes, which reads almost nothing.

    Raises:
        CheckpointError: names the file, and what is wrong with it.
    """
    entries = read_manifest(folder)
    for name, entry in entries.items():
        path = folder / name
        try:
            size, digest = path.stat().st_size, file_sha256(path) if hashes else entry["sha256"]
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if size != entry["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes where the manifest says {entry['bytes']}")
        if digest != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the manifest's")
    return list(entries)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of a folder's manifest, by file name: "bytes" and "sha256" of each.

    Raises:
        CheckpointError: there is no manifest, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        # The manifest has no sum of its own: its exact keys and the files themselves vouch for it.
        intact = all(FILE_NAME.fullmatch(name) and set(e) == {"bytes", "sha256"} for name, e in entries.items())
    except OSError as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint: {path} cannot be read: {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not intact:
        raise CheckpointError(f"{path} is damaged, or not this program's")
    return entries


def is_ours(path: Path) -> bool:
    """Whether `save_checkpoint` wrote the folder `path`, whole or not: it has a manifest of ours that names `STATE`."""
    with contextlib.suppress(CheckpointError):
        return STATE in read_manifest(path)
    return False


def verify_checkpoint(path: Path, hashes: bool = True) -> dict[str, Any]:
    """Compare a checkpoint with its manifest, and the manifest with the list of groups in `STATE`.

    The manifest has no sum of its own, so an entry that was lost from it shows only in that list. Checkpoints of
    earlier versions have no list; there every file of safetensors must be in the manifest.

    Args:
        path: the checkpoint.
        hashes: False compares only the files' sizes, which reads almost nothing.

    Returns:
        The content of `STATE`: "state", "step" and "groups".

    Raises:
        CheckpointError: the folder is not what was written; the message names the file.
    """
    names = set(verify_manifest(path, hashes))
    if STATE not in names:
        raise CheckpointError(f"{path / MANIFEST} does not name {STATE}")
    try:
        content = json.loads((path / STATE).read_text(encoding="utf-8"))
        state, step, groups = content["state"], content["step"], content.get("groups")
        if groups is None:
            groups = [file.stem for file in path.glob("*.safetensors")]
        lost = {f"{group}.safetensors" for group in groups} - names
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path / STATE} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict) or not isinstance(step, int):
        raise CheckpointError(f"{path / STATE} is damaged, or was not written by this program")
    if lost:
        raise CheckpointError(f"{path / MANIFEST} is damaged: it does not name {', '.join(sorted(lost))}")
    return {"state": state, "step": step, "groups": sorted(groups)}


def file_sha256(path: Path) -> str:
    """Hex digest of a file of any size."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()

"""Manifests with the sizes and SHA-256 hashes of the files in a folder, to verify that the folder is complete."""

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from training.errors import UserError

MANIFEST, STATE = "manifest.json", "state.json"
# Only such files are read from a checkpoint, and none from outside its folder.
FILE_NAME = re.compile(r"\w[\w.-]*\.(safetensors|json)")


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be written, or it is incomplete or damaged."""


def to_json(value: Any) -> str:
    """Serialize `value` as JSON without a final newline, so that a truncated file is never valid JSON.

    Raises:
        TypeError, ValueError: JSON cannot represent `value` (NaN, other types, keys that are not strings).
    """
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    if json.loads(text) != as_lists(value):
        raise TypeError("the keys of dictionaries must be strings")
    return text


def as_lists(value: Any) -> Any:
    """`value` with tuples replaced by lists, as after a round trip through JSON."""
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return [as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def sync(path: Path) -> None:
    """Flush the content of a file, or the entries of a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file and flush it to the disk."""
    path.write_text(text, encoding="utf-8")
    sync(path)


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    os.replace(aside, path)
    sync(path.parent)


def write_manifest(folder: Path) -> None:
    """Write the manifest of all files in `folder`, which must already be synced."""
    entries = {p.name: {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in folder.iterdir()}
    write_text(folder / MANIFEST, to_json(entries))
    sync(folder)


def verify_manifest(folder: Path, hashes: bool = True) -> list[str]:
    """Compare a folder with its manifest, and return the file names in the manifest. Other files are ignored.

    Args:
        folder: folder of the checkpoint.
        hashes: whether to compare hashes; False only compares sizes, which does not read the files.

    Raises:
        CheckpointError: a file is missing or damaged; the message names the file and the problem.
    """
    entries = read_manifest(folder)
    for name, entry in entries.items():
        path = folder / name
        try:
            size, digest = path.stat().st_size, file_sha256(path) if hashes else entry["sha256"]
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if size != entry["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes instead of {entry['bytes']} as in the manifest")
        if digest != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 differs from the manifest")
    return list(entries)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Read a folder's manifest: "bytes" and "sha256" of each file, by file name.

    Raises:
        CheckpointError: the manifest is missing or damaged.
    """
    path = folder / MANIFEST
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        # The manifest itself has no hash; it is validated by its exact keys and by the files.
        intact = all(FILE_NAME.fullmatch(name) and set(e) == {"bytes", "sha256"} for name, e in entries.items())
    except OSError as error:
        raise CheckpointError(f"{folder} is not a complete checkpoint: {path} cannot be read: {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not intact:
        raise CheckpointError(f"{path} is damaged, or was not written by this program")
    return entries


def is_ours(path: Path) -> bool:
    """Whether `save_checkpoint` wrote the folder `path`, complete or not: whether its manifest names `STATE`."""
    with contextlib.suppress(CheckpointError):
        return STATE in read_manifest(path)
    return False


def verify_checkpoint(path: Path, hashes: bool = True) -> dict[str, Any]:
    """Compare a checkpoint with its manifest, and the manifest with the list of groups in `STATE`.

    The manifest itself has no hash, so a missing entry can only be detected with that list. Checkpoints of earlier
    versions have no list; for them, all safetensors files must be in the manifest.

    Args:
        path: folder of the checkpoint.
        hashes: whether to compare hashes; False only compares sizes, which does not read the files.

    Returns:
        The content of `STATE`: "state", "step" and "groups".

    Raises:
        CheckpointError: the checkpoint is incomplete or damaged; the message names the file.
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
    """The SHA-256 hash of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()

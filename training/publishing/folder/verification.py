"""Verification of a student's files: headers and lengths of the weights, valid JSON, SHA-256 hashes.

`add_files.json` in an output folder lists the files that training wrote, with sizes and hashes. It is not published.
Only files in this list may be replaced or removed later.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from training.checkpoints.manifest import file_sha256
from training.publishing.folder.layout import CARD, RUN_FILE, SAMPLES, PublishError

FILES = "add_files.json"
MEASURED_FILE = "measured.json"
# Users may edit or replace these files; they are published without verification.
EDITABLE = (CARD, SAMPLES, RUN_FILE, MEASURED_FILE)


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 hash of each file, by its name relative to `folder`."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in sorted(names)
    }


def read_files(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Read the entries of `add_files.json`; None if the file does not exist.

    Raises:
        PublishError: the file is damaged.
    """
    path = folder / FILES
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        names = [Path(name) for name, entry in files.items() if {"bytes", "sha256"} == entry.keys()]
        if len(names) != len(files) or any(name.is_absolute() or ".." in name.parts for name in names):
            raise ValueError("its entries are not names with size and hash")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PublishError(f"{path} is damaged: {error}. Train or resume into the folder again, or remove the "
                           "file to publish the folder without checking hashes") from error  # fmt: skip
    return files


def is_unchanged(path: Path, entry: dict[str, Any] | None) -> bool:
    """Whether the file at `path` is the one that `entry` of `add_files.json` describes."""
    return entry is not None and path.stat().st_size == entry["bytes"] and file_sha256(path) == entry["sha256"]


def verify_files(folder: Path, names: Iterable[str], hashes: bool = True) -> None:
    """Refuse files that are truncated, damaged or changed since they were written.

    Args:
        folder: folder of the student.
        names: relative paths of the files to verify.
        hashes: whether to compare the hashes in `add_files.json`, which reads all files.

    Raises:
        PublishError: a file is truncated, damaged or changed; the message names the file and the problem.
    """
    entries = read_files(folder) or {}
    for name in names:
        check_file(folder / name)
        if name not in entries or name in EDITABLE:
            continue
        size = (folder / name).stat().st_size
        if size != entries[name]["bytes"] or (hashes and not is_unchanged(folder / name, entries[name])):
            raise PublishError(
                f"{folder / name} was changed: its size or SHA-256 differs from {FILES}. Train or resume into the "
                f"folder again; if you changed the file yourself, remove {folder / FILES} and repeat"
            )


def check_file(path: Path) -> None:
    """Check that a safetensors file has the length given in its header, and that a JSON file can be parsed.

    Raises:
        PublishError: the file is truncated or damaged.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as opened:
                opened.keys()
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        else:
            path.stat()
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise PublishError(f"{path} is damaged or truncated: {error}") from error

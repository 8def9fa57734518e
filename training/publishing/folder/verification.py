"""Whether the files of a student are whole: headers and lengths of the weights, JSON that parses, SHA-256 sums.

`add_files.json` in an output folder is the list of what was written there, with sizes and sums. It stays behind when
the folder is published. It also says what may be replaced or removed later: nothing that is not in it.
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
# Their owner may edit or replace these: they are published as they are.
EDITABLE = (CARD, SAMPLES, RUN_FILE, MEASURED_FILE)


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file, by its name relative to `folder`."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in sorted(names)
    }


def read_files(folder: Path) -> dict[str, dict[str, Any]] | None:
    """The entries of `add_files.json`; None where there is none.

    Raises:
        PublishError: it is damaged.
    """
    path = folder / FILES
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        names = [Path(name) for name, entry in files.items() if {"bytes", "sha256"} == entry.keys()]
        if len(names) != len(files) or any(name.is_absolute() or ".." in name.parts for name in names):
            raise ValueError("its entries are not names with their size and sum")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PublishError(f"{path} is damaged: {error}. Train or resume into the folder again, or remove the "
                           "file to publish the folder without its sums") from error  # fmt: skip
    return files


def is_unchanged(path: Path, entry: dict[str, Any] | None) -> bool:
    """Whether the file at `path` is the one that `entry` of `add_files.json` describes."""
    return entry is not None and path.stat().st_size == entry["bytes"] and file_sha256(path) == entry["sha256"]


def verify_files(folder: Path, names: Iterable[str], hashes: bool = True) -> None:
    """Refuse files that are cut short, damaged or changed since they were written.

    Args:
        folder: of the student.
        names: relative, of the files to look at.
        hashes: False leaves out the comparison with the sums in `add_files.json`, which reads every byte.

    Raises:
        PublishError: names the file, and what is wrong with it.
    """
    entries = read_files(folder) or {}
    for name in names:
        check_file(folder / name)
        if name not in entries or name in EDITABLE:
            continue
        size = (folder / name).stat().st_size
        if size != entries[name]["bytes"] or (hashes and not is_unchanged(folder / name, entries[name])):
            raise PublishError(
                f"{folder / name} is not what was written: its size or its SHA-256 is not that in {FILES}. Train or "
                f"resume into the folder again; if the change is yours, remove {folder / FILES} and repeat"
            )


def check_file(path: Path) -> None:
    """Read a safetensors file's header and compare it with the file's length; parse JSON.

    Raises:
        PublishError: the file is cut short or damaged.
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
        raise PublishError(f"{path} is damaged or cut short: {error}") from error

"""Safe reading of the files that the rows of a data set name.

Rows are written by the author of a data set and must not be able to open arbitrary files on this machine:

- Local paths (and `file://`) must be regular files. Symbolic links are followed, because folders of links to another
  disk are common. `folders` restricts the paths themselves, after `..` is resolved.
- `hf://`, and `https://` on the Hub's host, are allowed unless offline. `datasets` streams image folders from there.
- `zip://member::archive` is allowed if the archive is one of the two above. It is used for zipped image folders.
- All other schemes and hosts are refused. Images that are listed by URL have to be downloaded first, for example with
  img2dataset, which writes WebDataset shards.

At most `MAX_ENCODED_BYTES` are read from a file.
"""

import os
import stat
from collections.abc import Sequence
from typing import Any

import fsspec
from datasets import config as datasets_config
from huggingface_hub import constants

MAX_ENCODED_BYTES = 256 * 1024**2  # of one encoded image; photographs within Pillow's pixel limit are smaller


def read_file(path: str, folders: Sequence[str] | None = None, limit: int = MAX_ENCODED_BYTES) -> bytes:
    """Read `path`, a local path or a URL that is allowed as described above.

    Args:
        path: path or URL from the row.
        folders: absolute paths of the folders that a local path must be in; None allows all folders.
        limit: maximum size of the file in bytes.

    Raises:
        ValueError: the path is refused, or the file is not a regular file or is larger than `limit`.
        OSError: the file does not exist or cannot be read.
    """
    first, *containers = path.split("::") if "://" in path else [path]
    if first.startswith("zip://") and len(containers) == 1:
        _check_source(containers[0], folders)
    elif not containers:
        _check_source(first, folders)
        if "://" not in first or first.startswith("file://"):
            return _read_local(_local_path(first), limit)
    else:
        raise ValueError(f"a chain of URLs other than zip://member::archive: {path:.200}")
    opened: Any = fsspec.open(path, "rb")
    with opened as file:
        return _at_most(file.read(limit + 1), limit)


def _check_source(url: str, folders: Sequence[str] | None) -> None:
    if "://" not in url or url.startswith("file://"):
        _check_local(_local_path(url), folders)
    elif not url.startswith(("hf://", constants.ENDPOINT + "/")):
        raise ValueError(f"images are read from local files and from the Hub, not from {url:.200}")
    elif constants.is_offline_mode() or datasets_config.HF_HUB_OFFLINE:
        raise ValueError(f"HF_HUB_OFFLINE is set, and the image is at {url:.200}")


def _check_local(path: str, folders: Sequence[str] | None) -> None:
    absolute = os.path.abspath(path)
    if folders is not None and not any(os.path.commonpath([absolute, folder]) == folder for folder in folders):
        raise ValueError("outside of the data set's folder")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")


def _local_path(url: str) -> str:
    return url.removeprefix("file://")


def _read_local(path: str, limit: int) -> bytes:
    if os.stat(path).st_size > limit:
        raise ValueError(f"larger than {limit} bytes")
    # O_NONBLOCK: if the file was replaced by a pipe after the check, opening it does not wait for a writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        return _at_most(file.read(limit + 1), limit)


def _at_most(data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise ValueError(f"larger than {limit} bytes")
    return data

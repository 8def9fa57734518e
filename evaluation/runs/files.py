"""Atomic writing of files."""

import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that after a crash it is either complete or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically.

    Raises:
        ValueError: `value` contains NaN or infinity, which JSON cannot represent.
    """
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())

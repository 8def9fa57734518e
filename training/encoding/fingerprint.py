"""Fingerprints of models, to identify them without loading weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from training.checkpoints.manifest import file_sha256


def model_fingerprint(name: str, subfolder: str = "", revision: str | None = None, cache_dir: str | None = None) -> str:
    """Identify a model: the SHA-256 hash of its files for a folder, name and commit for a Hub repo.

    Raises:
        OSError: the model does not exist.
    """
    folder = Path(name, subfolder)
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(file_sha256(path).encode())
        return digest.hexdigest()
    # In the Hub's cache, the path of a file contains its commit: .../snapshots/<commit>/<subfolder>/config.json
    config = hf_hub_download(name, "config.json", subfolder=subfolder or None, revision=revision, cache_dir=cache_dir)
    return f"{name}/{subfolder}@{Path(config).parents[1 if subfolder else 0].name}"


def difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Describe the differences between two fingerprints for an error message; empty if there are none."""

    def short(value: Any) -> str:
        text = json.dumps(value)
        return text if len(text) <= 40 else text[:37] + "..."

    keys = sorted(then.keys() | now.keys())
    return "; ".join(
        f"{key}: {short(then.get(key))} -> {short(now.get(key))}" for key in keys if then.get(key) != now.get(key)
    )

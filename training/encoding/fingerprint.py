"""Identifies the models that a cache of embeddings was made with, without loading any weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from training.checkpoints.manifest import file_sha256


def model_fingerprint(name: str, subfolder: str = "", revision: str | None = None, cache_dir: str | None = None) -> str:
    """Identity of a model's files: their SHA-256 for a folder, name and commit for a Hub repo.

    Raises:
        OSError: there is no such model.
    """
    folder = Path(name, subfolder)
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(file_sha256(path).encode())
        return digest.hexdigest()
    # The Hub's cache keeps a file under the commit it came with: .../snapshots/<commit>/<subfolder>/config.json
    config = hf_hub_download(name, "config.json", subfolder=subfolder or None, revision=revision, cache_dir=cache_dir)
    return f"{name}/{subfolder}@{Path(config).parents[1 if subfolder else 0].name}"


def difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two fingerprints, for an error; empty where nothing does."""

    def short(value: Any) -> str:
        text = json.dumps(value)
        return text if len(text) <= 40 else text[:37] + "..."

    keys = sorted(then.keys() | now.keys())
    return "; ".join(
        f"{key}: {short(then.get(key))} -> {short(now.get(key))}" for key in keys if then.get(key) != now.get(key)
    )

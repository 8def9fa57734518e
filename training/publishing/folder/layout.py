"""The published layout: an allow-list of the files in an output folder that are published.

The layout is a stock diffusers repo (`model_index.json` and one folder per component), `pipeline.py`, the LoRA file if
there is one, the model card and the sample grid. Checkpoints, optimizer state, logs, validation images and pickles in
the same folder are not published.
"""

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from training.errors import UserError

MAIN = "main"  # the default branch
CARD = "README.md"
RUN_FILE = "add_run.json"  # written by training for the card; not published
SAMPLES = "samples.png"
LORA = "pytorch_lora_weights.safetensors"
INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
ROOT_FILES = (INDEX, "pipeline.py", LORA, CARD, SAMPLES)

# File names of diffusers and transformers, including variants (`.fp16`) and shards (`-00001-of-00002`).
_WEIGHTS = r"(diffusion_pytorch_)?model[\w.-]*\.safetensors(\.index[\w.]*\.json)?"
_CONFIGS = r"(config|scheduler_config|preprocessor_config|generation_config)\.json"
_TOKENIZER = r"(tokenizer|tokenizer_config|vocab|special_tokens_map|added_tokens)\.json|merges\.txt|spiece\.model"
_COMPONENT_FILE = re.compile(f"{_WEIGHTS}|{_CONFIGS}|{_TOKENIZER}")
_WEIGHT_FILE = re.compile(_WEIGHTS)


class PublishError(UserError, RuntimeError):
    """A student was not published. The message names the folder and repo, the reason and the fix."""


def layout_files(folder: str | Path, among: Collection[str] | None = None) -> list[str]:
    """Relative paths of the files in `folder` that have a name of the layout, sorted, `/`-separated.

    See `training.publishing.folder.published_folder.published_files`, which also verifies them.

    Args:
        folder: folder of the student.
        among: names to consider; other files are ignored. None considers all.

    Raises:
        PublishError: the folder does not contain a finished student; the message names the missing files.
    """
    folder = Path(folder)
    components = _components(folder)
    if components is None and not (folder / LORA).is_file():
        raise PublishError(
            f"{folder} does not contain a finished student: there is neither {INDEX} nor {LORA}. Give the --output_dir "
            "of a finished run"
        )
    # A LoRA without a full model still has a scheduler.
    names = [name for name in ROOT_FILES if (folder / name).is_file()]
    for component in ["scheduler"] if components is None else components:
        found = [p for p in (folder / component).glob("*") if p.is_file() and is_component_file(p.name)]
        names += [f"{component}/{p.name}" for p in found]
    names = [name for name in names if among is None or name in among]
    if missing := _missing(folder, components or {}, set(names)):
        raise PublishError(f"{folder} is not complete, so nothing is published. Missing: {', '.join(missing)}")
    return sorted(names)


def is_published_name(name: str) -> bool:
    """Whether the layout may have a file `name`, relative and `/`-separated."""
    return name in ROOT_FILES or (name.count("/") == 1 and is_component_file(name.split("/")[1]))


def is_component_file(name: str) -> bool:
    """Whether a component's folder may publish a file of this name."""
    return _COMPONENT_FILE.fullmatch(name) is not None


def is_weight_file(path: str) -> bool:
    """Whether `path` in the layout contains weights (and is therefore large)."""
    return path.endswith(".safetensors")


def stale_files(remote: Iterable[str], published: Iterable[str]) -> list[str]:
    """The files of an earlier student in a repo that might be loaded instead of the published ones.

    These are other shards and variants in the folders that are published. All other files in the repo are kept.
    """
    published = set(published)
    folders = {str(PurePosixPath(path).parent) for path in published} - {"."}
    return sorted(
        path
        for path in set(remote) - published
        if str(PurePosixPath(path).parent) in folders and is_component_file(PurePosixPath(path).name)
    )


def _components(folder: Path) -> dict[str, str] | None:
    """Component folders and their classes in `model_index.json`; None if there is no such file."""
    if not (folder / INDEX).is_file():
        return None
    index = _read(folder / INDEX)
    entries = {name: entry for name, entry in index.items() if isinstance(entry, list)}
    if any(len(entry) != 2 or "/" in name for name, entry in entries.items()):
        raise PublishError(f"{folder / INDEX} is damaged: it is not a list of components and their classes")
    return {name: entry[1] for name, entry in entries.items() if entry[1] is not None}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PublishError(f"{path} is damaged or truncated: {error}") from error
    if not isinstance(content, dict):
        raise PublishError(f"{path} is damaged: it is not a JSON object")
    return content


def _missing(folder: Path, components: dict[str, str], names: set[str]) -> list[str]:
    """The files that loading the student would require and that are missing."""
    needed = (SCHEDULER, "pipeline.py") if components else (SCHEDULER,)
    missing = [name for name in needed if name not in names]
    for component, class_name in components.items():
        files = {name.split("/")[1] for name in names if name.startswith(f"{component}/")}
        if not files:
            missing.append(f"{component}/")
        elif "config.json" in files and not any(_WEIGHT_FILE.fullmatch(name) for name in files):
            missing.append(f"{component}/*.safetensors ({class_name})")
        for index in (name for name in files if ".safetensors.index" in name):
            shards = set(map(str, _read(folder / component / index).get("weight_map", {}).values()))
            missing += [f"{component}/{shard}" for shard in sorted(shards - files)]
    return missing

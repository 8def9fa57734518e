"""What is published of a run's output folder: an allow-list, so that nothing else can slip in.

The layout is a stock diffusers repo (`model_index.json` and a folder a component), `pipeline.py`, the LoRA file where
there is one, the model card and the sample grid. Checkpoints, optimizer state, logs and validation images lie beside
them and stay behind; so do pickles.
"""

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from training.errors import UserError

MAIN = "main"  # the branch that is read where none is named
CARD = "README.md"
RUN_FILE = "add_run.json"  # what training leaves for the card; stays behind
SAMPLES = "samples.png"
LORA = "pytorch_lora_weights.safetensors"
INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
ROOT_FILES = (INDEX, "pipeline.py", LORA, CARD, SAMPLES)

# The names that diffusers and transformers write, variants (`.fp16`) and shards (`-00001-of-00002`) included.
_WEIGHTS = r"(diffusion_pytorch_)?model[\w.-]*\.safetensors(\.index[\w.]*\.json)?"
_CONFIGS = r"(config|scheduler_config|preprocessor_config|generation_config)\.json"
_TOKENIZER = r"(tokenizer|tokenizer_config|vocab|special_tokens_map|added_tokens)\.json|merges\.txt|spiece\.model"
_COMPONENT_FILE = re.compile(f"{_WEIGHTS}|{_CONFIGS}|{_TOKENIZER}")
_WEIGHT_FILE = re.compile(_WEIGHTS)


class PublishError(UserError, RuntimeError):
    """Nothing, or not all, was published: says of which folder and repo, why, and how to repeat it."""


def layout_files(folder: str | Path, among: Collection[str] | None = None) -> list[str]:
    """Relative paths of the files in `folder` that have a name of the layout, sorted, `/`-separated.

    See `training.publishing.folder.published_folder.published_files`, which also verifies them.

    Args:
        folder: of the student.
        among: names outside of these are passed over as if they were not there; None considers all.

    Raises:
        PublishError: the folder holds no finished student; names what is missing.
    """
    folder = Path(folder)
    components = _components(folder)
    if components is None and not (folder / LORA).is_file():
        raise PublishError(
            f"{folder} holds no finished student: neither {INDEX} nor {LORA} is there. Give the --output_dir of a "
            "run that has come to its end"
        )
    # A LoRA alone still says how it is sampled.
    names = [name for name in ROOT_FILES if (folder / name).is_file()]
    for component in ["scheduler"] if components is None else components:
        found = [p for p in (folder / component).glob("*") if p.is_file() and is_component_file(p.name)]
        names += [f"{component}/{p.name}" for p in found]
    names = [name for name in names if among is None or name in among]
    if missing := _missing(folder, components or {}, set(names)):
        raise PublishError(f"{folder} is not complete, so nothing is published. Missing: {', '.join(missing)}")
    return sorted(names)


def is_published_name(name: str) -> bool:
    """Whether `name`, relative and `/`-separated, is one that the layout may have."""
    return name in ROOT_FILES or (name.count("/") == 1 and is_component_file(name.split("/")[1]))


def is_component_file(name: str) -> bool:
    """Whether a component's folder may publish a file of this name."""
    return _COMPONENT_FILE.fullmatch(name) is not None


def is_weight_file(path: str) -> bool:
    """Whether `path`, of the layout, holds weights (and is therefore large)."""
    return path.endswith(".safetensors")


def stale_files(remote: Iterable[str], published: Iterable[str]) -> list[str]:
    """Of the files in a repo, those of an earlier student that would be read in place of the one published now.

    Such are other shards and variants in the folders that are written again. All else that lies in a repo is its
    owner's own and stays.
    """
    published = set(published)
    folders = {str(PurePosixPath(path).parent) for path in published} - {"."}
    return sorted(
        path
        for path in set(remote) - published
        if str(PurePosixPath(path).parent) in folders and is_component_file(PurePosixPath(path).name)
    )


def _components(folder: Path) -> dict[str, str] | None:
    """Component folders and their classes, as `model_index.json` names them; None without one."""
    if not (folder / INDEX).is_file():
        return None
    index = _read(folder / INDEX)
    entries = {name: entry for name, entry in index.items() if isinstance(entry, list)}
    if any(len(entry) != 2 or "/" in name for name, entry in entries.items()):
        raise PublishError(f"{folder / INDEX} is damaged: it does not name components and their classes")
    return {name: entry[1] for name, entry in entries.items() if entry[1] is not None}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PublishError(f"{path} is damaged or cut short: {error}") from error
    if not isinstance(content, dict):
        raise PublishError(f"{path} is damaged: it holds no JSON object")
    return content


def _missing(folder: Path, components: dict[str, str], names: set[str]) -> list[str]:
    """What a loader would look for and not find."""
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

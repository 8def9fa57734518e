"""Reading of prompts from COCO captions, PartiPrompts, data sets on the Hub, and text files."""

import csv
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evaluation.errors import EvaluationError

if TYPE_CHECKING:
    import datasets

PARTI_COLUMN = "Prompt"  # column in PartiPrompts.tsv


def read_prompts(path: Path, caption_column: str = "text") -> list[str]:
    """Read prompts from a file in the format given by its extension.

    - `.txt`: one prompt per line.
    - `.tsv`: the column `Prompt`, as in PartiPrompts.
    - `.json`: COCO's `captions_val2017.json`: the caption with the lowest id of each image, in the order of image ids.
    - `.jsonl`: the field `caption_column` of each line, as in the `metadata.jsonl` of an image folder.

    Raises:
        EvaluationError: the file does not exist, has another extension, or contains no prompts.
    """
    readers = {
        ".txt": _read_lines,
        ".tsv": _read_parti,
        ".json": _read_coco,
        ".jsonl": lambda p: _read_jsonl(p, caption_column),
    }
    if path.suffix not in readers:
        raise EvaluationError(f"--prompts {path}: give a file that ends in {', '.join(readers)}.")
    try:
        prompts = readers[path.suffix](path)
    except OSError as error:
        raise EvaluationError(f"--prompts {path}: {error.strerror}.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"--prompts {path}: the file is not in the expected layout of a {path.suffix} file: {error!r}."
        ) from error
    return _clean_prompts(prompts, f"--prompts {path}")


def load_dataset_prompts(name: str, config: str | None, split: str, caption_column: str) -> list[str]:
    """Read one column of a data set (Hub id or folder). Of a list of captions, the first is used.

    Raises:
        EvaluationError: the split or column does not exist; the message lists the existing ones.
    """
    rows = load_split(name, config, split)
    if caption_column not in rows.column_names:
        raise EvaluationError(f"--caption_column {caption_column}: {name} has {', '.join(rows.column_names)}.")
    captions = [cell if isinstance(cell, str) else cell[0] for cell in rows[caption_column] if cell]
    return _clean_prompts(captions, f"--dataset_name {name}")


def load_split(name: str, config: str | None, split: str) -> "datasets.Dataset":
    """Load one split of a data set (Hub id or folder).

    Raises:
        EvaluationError: the data set or split does not exist; the message lists the existing splits.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        splits = cast(datasets.DatasetDict, datasets.load_dataset(name, config))
    except (OSError, ValueError, DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise EvaluationError(f"--dataset_name {name}: cannot be loaded: {reason}") from error
    if split not in splits:
        raise EvaluationError(f"--dataset_split {split}: {name} has {', '.join(map(str, splits))}.")
    return splits[split]


def choose_prompts(prompts: list[str], count: int | None, seed: int) -> list[str]:
    """Select `count` prompts at random with `seed`, without replacement; all of them, in order, if `count` is None.

    Raises:
        EvaluationError: there are fewer than `count` prompts.
    """
    if count is None:
        return prompts
    if not 1 <= count <= len(prompts):
        raise EvaluationError(f"--num_prompts {count}: there are {len(prompts)} prompts to choose from.")
    return random.Random(seed).sample(prompts, count)


def _clean_prompts(prompts: list[Any], source: str) -> list[str]:
    prompts = [" ".join(prompt.split()) for prompt in prompts if isinstance(prompt, str) and prompt.strip()]
    if not prompts:
        raise EvaluationError(f"{source}: there are no prompts.")
    return prompts


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _read_parti(path: Path) -> list[str]:
    with open(path, encoding="utf-8", newline="") as file:
        return [row[PARTI_COLUMN] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def _read_coco(path: Path) -> list[str]:
    annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
    first: dict[int, dict] = {}
    for annotation in sorted(annotations, key=lambda annotation: annotation["id"]):
        first.setdefault(annotation["image_id"], annotation)
    return [first[image_id]["caption"] for image_id in sorted(first)]


def _read_jsonl(path: Path, column: str) -> list[str]:
    return [json.loads(line)[column] for line in _read_lines(path) if line.strip()]

"""Reads a recipe: flags of the training script in a text file, so that the demo and its ablations train alike."""

import shlex
from collections.abc import Collection
from pathlib import Path

from evaluation.errors import EvaluationError

DEFAULT_RECIPE = Path("examples/demo/recipe.txt")
OUTPUT_FLAG = "--output_dir"


def read_recipe(path: Path) -> list[str]:
    """The words of a recipe, split as a shell splits its lines; `#` begins a comment.

    Raises:
        EvaluationError: no such file, no flag in it, or one that a recipe may not hold.
    """
    try:
        words = shlex.split(path.read_text(encoding="utf-8"), comments=True)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"--recipe {path}: {error}; give a text file of flags of train_add.py.") from error
    if not words or not words[0].startswith("--"):
        raise EvaluationError(f"--recipe {path}: begins with {words[:1]}; give flags, such as --use_ema.")
    if OUTPUT_FLAG in words:
        raise EvaluationError(f"--recipe {path}: holds {OUTPUT_FLAG}; take it out, every run has a folder of its own.")
    return words


def merge_flags(words: list[str], without: Collection[str] = ()) -> list[str]:
    """The same command line with every flag once, the last one given, which is the one that argparse takes; those named
    in `without` not at all."""
    flags: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word
            flags[name] = []
        else:
            flags[name].append(word)
    return [word for name, values in flags.items() if name not in without for word in (name, *values)]

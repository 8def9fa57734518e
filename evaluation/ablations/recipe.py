"""Reading of recipes, text files with flags of the training script that the demo and its ablations share."""

import shlex
from collections.abc import Collection
from pathlib import Path

from evaluation.errors import EvaluationError

DEFAULT_RECIPE = Path("examples/demo/recipe.txt")
OUTPUT_FLAG = "--output_dir"


def read_recipe(path: Path) -> list[str]:
    """The words of a recipe, split as in a shell; `#` starts a comment.

    Raises:
        EvaluationError: the file does not exist, has no flags, or has a flag that is not allowed in a recipe.
    """
    try:
        words = shlex.split(path.read_text(encoding="utf-8"), comments=True)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"--recipe {path}: {error}; give a text file of flags of train_add.py.") from error
    if not words or not words[0].startswith("--"):
        raise EvaluationError(f"--recipe {path}: it starts with {words[:1]}; give flags, such as --use_ema.")
    if OUTPUT_FLAG in words:
        raise EvaluationError(f"--recipe {path}: remove {OUTPUT_FLAG}, because each run has its own folder.")
    return words


def merge_flags(words: list[str], without: Collection[str] = ()) -> list[str]:
    """Remove repeated flags from a command line, keeping the last one like argparse; also remove those in `without`."""
    flags: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word
            flags[name] = []
        else:
            flags[name].append(word)
    return [word for name, values in flags.items() if name not in without for word in (name, *values)]

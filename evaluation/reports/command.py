"""Options and implementation of `python -m evaluation compare`."""

import argparse
import json
from pathlib import Path
from typing import Any

from evaluation.command_line import parse_count
from evaluation.errors import EvaluationError, require_packages
from evaluation.runs.environment import describe_environment
from evaluation.runs.run import open_comparable


# fmt: off
def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `compare`."""
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="Folders of runs over the same prompts and seeds.")
    add("--output_dir", type=Path, required=True, help="Folder for comparison.md, comparison.json and comparison.html.")
    add("--elo", type=Path, default=None, help="Output of `python -m evaluation.preference elo --output`, for Fig. 7.")
    add("--num_shown", type=parse_count, default=12, help="Number of prompts in the grid of images.")
    add("--allow_different_sizes", action="store_true", help="Allow runs whose saved images have different sizes. The "
        "table then shows the sizes, and the figures are not comparable.")
# fmt: on


def run_compare(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Compare runs.

    Args:
        args: parsed options of `add_options`.
        facts: the command, which is stored with the figures.

    Raises:
        EvaluationError: the runs cannot be compared, or --elo is not the output of a study.
    """
    if len(args.runs) < 2:
        raise EvaluationError("compare needs at least two runs.")
    require_packages("matplotlib")
    from evaluation.reports.compare_runs import DATA, PAGE, write_comparison

    elo = _read_elo(args.elo) if args.elo else None
    runs = open_comparable(args.runs, args.allow_different_sizes)
    facts = {**facts, "environment": describe_environment("cpu")}
    try:
        print(write_comparison(runs, args.output_dir, elo, args.num_shown, facts))
    except OSError as error:
        raise EvaluationError(f"--output_dir {args.output_dir}: {error.strerror}.") from error
    if len({run.drawn_size for run in runs}) > 1:
        print("Note: the images were generated at different sizes and resized to one; the table shows the sizes.")
    print(f"The page is {args.output_dir / PAGE}. To add the figures to a model card, run")
    print(f"  python -m training.publish STUDENT --measured {args.output_dir / DATA}")


def _read_elo(path: Path) -> dict[str, Any]:
    try:
        elo = json.loads(path.read_text(encoding="utf-8"))
        {name: float(entry["mean"]) for name, entry in elo["elo"].items()}
        return {"elo": elo["elo"], "definition": str(elo["definition"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(
            f"--elo {path}: cannot be read ({type(error).__name__}: {error}); give the output of `python -m "
            "evaluation.preference elo --output`."
        ) from error

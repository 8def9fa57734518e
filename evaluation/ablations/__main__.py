"""Run the paper's ablations and print the results beside Table 1 of the paper.

    python -m evaluation.ablations --table d --tiny_dir build/tiny --output_dir build/ablations
    python -m evaluation.ablations --table b c --base stabilityai/stable-diffusion-2-1-base --recipe my_recipe.txt \\
      --prompts captions_val2017.json --reference val2017 --output_dir ablations

The training script is run for each row and seed. A killed command can be repeated: finished rows are kept, and an
unfinished one is resumed from its checkpoint. `--dry_run` prints the commands without running them.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.ablations.recipe import DEFAULT_RECIPE, read_recipe
from evaluation.ablations.report import ablations_markdown, collect_results, results_json
from evaluation.ablations.run import Job, launch_into, plan_jobs, run_jobs
from evaluation.ablations.tables import TABLES
from evaluation.ablations.worlds import RealWorld, TinyWorld, World, missing_for
from evaluation.command_line import OneLineParser, make_parser
from evaluation.errors import EvaluationError
from evaluation.runs.environment import describe_environment, pick_device
from evaluation.runs.files import write_atomically, write_json
from evaluation.tiny.judge import quiet_libraries
from training.command import command_name, run_command

MODULE = "evaluation.ablations"


class FailedRunsError(EvaluationError):
    """Some rows could not be trained or measured. The page with all other rows is written."""

    status = 1


# The formatter would wrap each option over several lines.
# fmt: off
def make_ablations_parser() -> OneLineParser:
    """Make the parser of `python -m evaluation.ablations`."""
    parser = make_parser(MODULE, __doc__)
    add = parser.add_argument
    add("--table", nargs="+", choices=[*TABLES, "all"], required=True, help="Parts of Table 1 to run.")
    add("--output_dir", type=Path, required=True, help="Folder for the runs, ablations.md and ablations.json.")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds of the runs of each row (default: 0 1 2).")
    add("--max_train_steps", type=int, default=300, help="Number of iterations of each training run (default: 300).")
    add("--recipe", type=Path, default=DEFAULT_RECIPE, help="Text file with the training flags that all rows share. "
        "With --base, they include the flags of the data set. Defaults to the demo's recipe.")
    add("--launcher", default="python", help="Command that starts the training script, such as \"accelerate launch\" "
        "(default: python).")
    add("--notes", type=Path, default=None, help="Markdown file to include in the page below the findings.")
    add("--dry_run", action="store_true", help="Print the commands of all rows without running them.")
    tiny = parser.add_argument_group("tiny world").add_argument
    tiny("--tiny_dir", type=Path, default=None, help="Output folder of `python -m examples.tiny.build`.")
    tiny("--tiny_sdxl_dir", type=Path, default=None, help="The same with --layout sdxl, for table e.")
    tiny("--num_samples", type=int, default=500, help="Number of images per measurement (default: 500).")
    real = parser.add_argument_group("real models").add_argument
    real("--base", default=None, help="Hub id or folder of student and teacher, to be used instead of the tiny world.")
    real("--base_xl", default=None, help="Hub id or folder of SDXL, for table e.")
    real("--prompts", type=Path, default=None, help="File with captions, e.g. captions_val2017.json.")
    real("--num_prompts", type=int, default=5000, help="Number of captions (default: 5000, as in the paper).")
    real("--reference", type=Path, default=None, help="Folder of real images, e.g. val2017.")
    real("--evaluator", default=None, help="Folder of the tiny world's evaluator, instead of Inception and CLIP.")
    return parser
# fmt: on


def open_world(args: argparse.Namespace) -> World:
    """Open the tiny world or the real models.

    Raises:
        EvaluationError: the world cannot be used.
    """
    if args.base is not None:
        return RealWorld(args.base, args.base_xl, args.prompts, args.reference, args.num_prompts, args.evaluator)
    return TinyWorld(args.tiny_dir, args.tiny_sdxl_dir, args.output_dir / "stand_ins", args.num_samples)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise an EvaluationError if neither or both worlds are given, or an option is invalid."""
    if (args.base is None) == (args.tiny_dir is None):
        raise EvaluationError("give either --tiny_dir FOLDER (the tiny world) or --base MODEL (a real model).")
    if args.max_train_steps < 1:
        raise EvaluationError(f"--max_train_steps {args.max_train_steps}: give 1 or more.")
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise EvaluationError(f"--seeds {args.seeds}: give different whole numbers that are not negative.")
    if args.base is not None and args.recipe == DEFAULT_RECIPE:
        raise EvaluationError(f"--recipe {args.recipe}: it is for digits of 32 pixels; give another one for --base.")
    if args.notes and not args.notes.is_file():
        raise EvaluationError(f"--notes {args.notes}: there is no such file.")


def describe_jobs(letters: list[str], world: World, preparations: list[list[str]], jobs: list[Job]) -> str:
    """Write the commands of a dry run as a shell script, with a comment on table, row and seed above each command."""
    lines = []
    for command in preparations:
        lines += ["# Networks that some rows need", shlex.join(command)]
    places: dict[str, list[str]] = {}
    for letter in letters:
        for row in TABLES[letter].rows:
            places.setdefault(row.run, []).append(f"table {letter}: {row.label}")
    for job in jobs:
        lines += [f"# {'; '.join(places[job.row.run])}; seed {job.seed}", shlex.join(job.command)]
    for letter in letters:
        for row in TABLES[letter].rows:
            if reason := missing_for(world, row):
                lines.append(f"# table {letter}: {row.label}: not run, {reason}")
    return "\n".join(lines)


def run_ablations(args: argparse.Namespace, words: Sequence[str]) -> None:
    """Run the missing rows and write the page.

    Raises:
        FailedRunsError: a run failed. All others were run, and the page is written.
        EvaluationError: an option is invalid.
    """
    check_arguments(args)
    letters = list(TABLES) if "all" in args.table else sorted(set(args.table))
    world, recipe = open_world(args), read_recipe(args.recipe)
    rows = [row for letter in letters for row in TABLES[letter].rows]
    out, launcher = args.output_dir, shlex.split(args.launcher)
    jobs = plan_jobs(rows, world, args.seeds, recipe, args.max_train_steps, out, launcher)
    preparations = world.preparations([job.row for job in jobs])
    if args.dry_run:
        print(describe_jobs(letters, world, preparations, jobs))
        return
    out.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    for command in preparations:
        launch_into(out / "preparations.log")(command)
    failed = run_jobs(jobs, world)
    facts = {
        "command": shlex.join([*command_name(MODULE).split(), *words]),
        "preparations": preparations,
        "environment": describe_environment(pick_device(None)),
    }
    results = collect_results(jobs)
    page = ablations_markdown(letters, world, jobs, results, failed, args.notes, facts)
    write_json(out / "ablations.json", results_json(letters, jobs, results, facts))
    write_atomically(out / "ablations.md", page.encode())
    print(page)
    if failed:
        raise FailedRunsError(
            f"{len(failed)} of {len(jobs)} runs failed ({'; '.join(failed)}); see {out / 'ablations.md'} for the "
            "reasons. Repeat the command to run them again."
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process.

    Raises:
        SystemExit: the command failed; it has the exit status.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    run_command(make_ablations_parser(), words, lambda args: run_ablations(args, words))


if __name__ == "__main__":
    # SIGTERM raises SystemExit, so that the running training is also killed; see `_run_group`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()

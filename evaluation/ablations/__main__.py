"""Run the paper's ablations and print them beside its Table 1.

    python -m evaluation.ablations --table d --tiny_dir build/tiny --output_dir build/ablations
    python -m evaluation.ablations --table b c --base stabilityai/stable-diffusion-2-1-base --recipe my_recipe.txt \\
      --prompts captions_val2017.json --reference val2017 --output_dir ablations

Every row is a run of the training script, for several seeds. A command that was killed continues where it was: finished
rows are kept, a half-trained one resumes from its checkpoint. `--dry_run` prints the commands and runs nothing.
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
    """Some rows could not be trained or measured; the others were, and the page is written."""

    status = 1


# One option a line where it fits: this is a table, and the formatter would make it three screens longer.
# fmt: off
def make_ablations_parser() -> OneLineParser:
    """The command line."""
    parser = make_parser(MODULE, __doc__)
    add = parser.add_argument
    add("--table", nargs="+", choices=[*TABLES, "all"], required=True, help="Parts of Table 1 to run.")
    add("--output_dir", type=Path, required=True, help="Folder for the runs, ablations.md and ablations.json.")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds; each is a training of its own; default: 0 1 2.")
    add("--max_train_steps", type=int, default=300, help="Iterations of every training; default: 300.")
    add("--recipe", type=Path, default=DEFAULT_RECIPE, help="Text file of the training flags that all rows share; "
        "with --base also those of the data set; default: the demo's.")
    add("--launcher", default="python", help="Command that starts the training script, such as \"accelerate launch\"; "
        "default: python.")
    add("--notes", type=Path, default=None, help="Markdown file that the page shows under the findings.")
    add("--dry_run", action="store_true", help="Print the command of every row and run nothing.")
    tiny = parser.add_argument_group("tiny world").add_argument
    tiny("--tiny_dir", type=Path, default=None, help="The folder that `python -m examples.tiny.build` built.")
    tiny("--tiny_sdxl_dir", type=Path, default=None, help="The same with --layout sdxl, for table e.")
    tiny("--num_samples", type=int, default=500, help="Images of each measurement; default: 500.")
    real = parser.add_argument_group("real models").add_argument
    real("--base", default=None, help="Hub id or folder of student and teacher, in place of the tiny world.")
    real("--base_xl", default=None, help="Hub id or folder of SDXL, for table e.")
    real("--prompts", type=Path, default=None, help="File of captions, e.g. captions_val2017.json.")
    real("--num_prompts", type=int, default=5000, help="Number of captions; default: 5000, as in the paper.")
    real("--reference", type=Path, default=None, help="Folder of real images, e.g. val2017.")
    real("--evaluator", default=None, help="The tiny world's evaluator, in place of Inception and CLIP.")
    return parser
# fmt: on


def open_world(args: argparse.Namespace) -> World:
    """Raises: EvaluationError: a world that cannot be used."""
    if args.base is not None:
        return RealWorld(args.base, args.base_xl, args.prompts, args.reference, args.num_prompts, args.evaluator)
    return TinyWorld(args.tiny_dir, args.tiny_sdxl_dir, args.output_dir / "stand_ins", args.num_samples)


def check_arguments(args: argparse.Namespace) -> None:
    """Raises: EvaluationError: neither or both worlds, or an option that cannot work."""
    if (args.base is None) == (args.tiny_dir is None):
        raise EvaluationError("give --tiny_dir FOLDER (the tiny world) or --base MODEL (a real one), one of the two.")
    if args.max_train_steps < 1:
        raise EvaluationError(f"--max_train_steps {args.max_train_steps}: give 1 or more.")
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise EvaluationError(f"--seeds {args.seeds}: give different whole numbers from 0 on; each is a training.")
    if args.base is not None and args.recipe == DEFAULT_RECIPE:
        raise EvaluationError(f"--recipe {args.recipe}: is for digits of 32 pixels; with --base write one of your own.")
    if args.notes and not args.notes.is_file():
        raise EvaluationError(f"--notes {args.notes}: no such file.")


def describe_jobs(letters: list[str], world: World, preparations: list[list[str]], jobs: list[Job]) -> str:
    """The commands of a dry run as a shell script: each under a comment that names its table, row and seed."""
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
    """Run what is missing and write the page.

    Raises:
        FailedRunsError: a run failed; all others were run, and the page is written.
        EvaluationError: an option that cannot work.
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
            f"{len(failed)} of {len(jobs)} runs failed ({'; '.join(failed)}); {out / 'ablations.md'} says why. The "
            "same command tries them again."
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        SystemExit: it failed, with the exit status.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    run_command(make_ablations_parser(), words, lambda args: run_ablations(args, words))


if __name__ == "__main__":
    # A terminated command ends its training too: on the exit that this raises, the launch kills what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()

"""Run the paper's ablations and print them beside its Table 1.

    python -m evaluation.ablations --table d --tiny_dir build/tiny --output_dir build/ablations
    python -m evaluation.ablations --table b c --base stabilityai/stable-diffusion-2-1-base --recipe my_recipe.txt \\
      --prompts captions_val2017.json --reference val2017 --output_dir ablations

Every row is a run of the training script, for several seeds. Killed, it goes on where it was: finished rows are kept,
a half-trained one continues from its checkpoint. `--dry_run` prints the commands and runs nothing.
"""

import argparse
import shlex
import signal
import sys
from pathlib import Path

from evaluation import environment
from evaluation.ablations.report import collect, markdown, to_json
from evaluation.ablations.run import launch_into, plan, run_jobs
from evaluation.ablations.tables import TABLES
from evaluation.ablations.worlds import RealWorld, TinyWorld, World
from evaluation.errors import EvaluationError, exit_status
from evaluation.ablations.recipe import DEFAULT_RECIPE, read_recipe
from evaluation.runs.run import write_aside, write_json
from evaluation.tiny.judge import quiet_libraries


# One flag a line where it fits: this is a table, and the formatter would make it three screens longer.
# fmt: off
def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.ablations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--table", nargs="+", choices=[*TABLES, "all"], required=True, help="parts of Table 1")
    add("--output_dir", type=Path, required=True, help="runs, ablations.md and ablations.json")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a training each; default: 0 1 2")
    add("--max_train_steps", type=int, default=300, help="iterations of every training; default: 300")
    add("--recipe", type=Path, default=DEFAULT_RECIPE, help="text file of the training flags that all rows share; "
        "with --base also those of the data set; default: the demo's")
    add("--launcher", default="python", help="what starts the training script, such as \"accelerate launch\"; "
        "default: python")
    add("--notes", type=Path, default=None, help="Markdown to place under the findings")
    add("--dry_run", action="store_true", help="print the commands and run nothing")
    tiny = parser.add_argument_group("tiny world").add_argument
    tiny("--tiny_dir", type=Path, default=None, help="what `python -m examples.tiny.build` built")
    tiny("--tiny_sdxl_dir", type=Path, default=None, help="the same with --layout sdxl, for table e")
    tiny("--num_samples", type=int, default=500, help="images a measurement; default: 500")
    real = parser.add_argument_group("real models").add_argument
    real("--base", default=None, help="Hub id or folder of student and teacher, in place of the tiny world")
    real("--base_xl", default=None, help="of SDXL, for table e")
    real("--prompts", type=Path, default=None, help="captions, e.g. captions_val2017.json")
    real("--num_prompts", type=int, default=5000, help="default: 5000, as in the paper")
    real("--reference", type=Path, default=None, help="folder of real images, e.g. val2017")
    real("--evaluator", default=None, help="the tiny world's evaluator in place of Inception and CLIP")
    return parser
# fmt: on


def open_world(args: argparse.Namespace) -> World:
    """Raises: EvaluationError: a world that cannot be used."""
    if args.base is not None:
        return RealWorld(args.base, args.base_xl, args.prompts, args.reference, args.num_prompts, args.evaluator)
    return TinyWorld(args.tiny_dir, args.tiny_sdxl_dir, args.output_dir / "stand_ins", args.num_samples)


def check(args: argparse.Namespace) -> None:
    """Raises: EvaluationError: neither or both worlds, or a flag that cannot work."""
    if (args.base is None) == (args.tiny_dir is None):
        raise EvaluationError("give --tiny_dir FOLDER (the tiny world) or --base MODEL (a real one), one of the two.")
    if args.max_train_steps < 1:
        raise EvaluationError(f"--max_train_steps {args.max_train_steps}: 1 or more.")
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise EvaluationError(f"--seeds {args.seeds}: different whole numbers from 0 on; each is a training.")
    if args.base is not None and args.recipe == DEFAULT_RECIPE:
        raise EvaluationError(f"--recipe {args.recipe}: is for digits of 32 pixels; with --base write one of your own.")
    if args.notes and not args.notes.exists():
        raise EvaluationError(f"--notes {args.notes}: no such file.")


def ablate(args: argparse.Namespace, argv: list[str]) -> int:
    """Run what is missing and write the page. Returns the exit status: 1 where a run failed."""
    check(args)
    letters = list(TABLES) if "all" in args.table else sorted(set(args.table))
    world, recipe = open_world(args), read_recipe(args.recipe)
    rows = [row for letter in letters for row in TABLES[letter].rows]
    out, launcher = args.output_dir, shlex.split(args.launcher)
    jobs = plan(rows, world, args.seeds, recipe, args.max_train_steps, out, launcher)
    preparations = world.preparations([job.row for job in jobs])
    if args.dry_run:
        print("\n".join(map(shlex.join, [*preparations, *(job.command for job in jobs)])))
        return 0
    out.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    for command in preparations:
        launch_into(out / "preparations.log")(command)
    failed = run_jobs(jobs, world)
    facts = {
        "command": shlex.join(["python", "-m", "evaluation.ablations", *argv]),
        "preparations": preparations,
        "environment": environment.describe(environment.pick_device(None)),
    }
    results = collect(jobs)
    page = markdown(letters, world, jobs, results, failed, args.notes, facts)
    write_json(out / "ablations.json", to_json(letters, jobs, results, facts))
    write_aside(out / "ablations.md", page.encode())
    print(page)
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """The command."""
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser().parse_args(argv)
    return exit_status(lambda: ablate(args, argv))


if __name__ == "__main__":
    # A terminated command ends its training too: on the exit that this raises, the launch kills what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())

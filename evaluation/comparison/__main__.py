"""Table 2 of the paper on the tiny world: a teacher with fast samplers, and its distillation by ADD and by LCM.

    python -m evaluation.comparison --tiny_dir build/tiny --add_student build/demo/student --output_dir build/comparison

The command distils the teacher with LCM, with the number of updates and the batch size of the ADD student (from its
`add_run.json`), measures all systems with the same captions and seeds, and writes `comparison.md` and
`comparison.json`. An existing LCM student is kept.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from evaluation.command_line import OneLineParser, make_parser
from evaluation.comparison.table2 import check_claims, load_entry, table2_markdown, table_entries
from evaluation.errors import EvaluationError
from evaluation.runs.environment import describe_environment
from evaluation.runs.files import write_atomically, write_json
from evaluation.tiny.judge import TinyJudge, quiet_libraries
from training.command import command_name, run_command

MODULE = "evaluation.comparison"
RUN_FILE = "add_run.json"
# LCM's distillation is an example, and the examples import this folder: it is run as a command.
LCM_PROGRAM = "python -m examples.lcm"
LCM_RECORD = "lcm.json"  # where it leaves its command line


def make_comparison_parser() -> OneLineParser:
    """Make the parser of `python -m evaluation.comparison`."""
    parser = make_parser(MODULE, __doc__)
    add = parser.add_argument
    add("--tiny_dir", type=Path, required=True, help="Folder of the tiny world that the student was trained on.")
    add("--add_student", type=Path, required=True, help="The --output_dir of train_add.py.")
    add("--output_dir", type=Path, required=True, help="Folder for lcm/, comparison.md and comparison.json.")
    add("--updates", type=int, default=None, help="Optimizer steps of LCM. Defaults to those of the ADD student.")
    add("--batch_size", type=int, default=None, help="Batch size of LCM. Defaults to that of the ADD student.")
    add("--lcm_learning_rate", type=float, default=1e-4, help="Learning rate of LCM (default: 1e-4).")
    add(
        "--guidance_scale",
        type=float,
        default=2.0,
        help="Guidance scale of the guided teacher, for sampling and for LCM (default: 2).",
    )
    add("--num_samples", type=int, default=500, help="Number of images per row (default: 500).")
    add("--seed", type=int, default=0, help="Seed for the training of LCM (default: 0).")
    add("--commands", nargs="*", default=[], help="Commands that made the world and the student, for the page.")
    return parser


def complete_arguments(args: argparse.Namespace) -> None:
    """Check the flags, and set missing ones to the values of the ADD student.

    Raises:
        EvaluationError: there is no student, it has no record of its training, or an option is invalid.
    """
    if not (args.add_student / "model_index.json").exists():
        raise EvaluationError(
            f"--add_student {args.add_student}: no model_index.json there; give the output of train_add.py."
        )
    path = args.add_student / RUN_FILE
    facts = json.loads(path.read_text(encoding="utf-8"))["facts"] if path.exists() else {}
    for flag, fact in (("updates", "iterations"), ("batch_size", "effective batch")):
        if getattr(args, flag) is None:
            if fact not in facts:
                raise EvaluationError(f"--{flag}: {path} does not contain it; give the value of the ADD student.")
            setattr(args, flag, facts[fact])
    if args.guidance_scale <= 1:
        raise EvaluationError(f"--guidance_scale {args.guidance_scale}: give a number above 1.")


def lcm_command(args: argparse.Namespace) -> list[str]:
    """The command that distils the teacher with LCM, as a list of words."""
    folder = args.output_dir / "lcm"
    return [
        *LCM_PROGRAM.split(), "--tiny_dir", str(args.tiny_dir), "--output_dir", str(folder), "--updates",
        str(args.updates), "--batch_size", str(args.batch_size), "--learning_rate",
        str(args.lcm_learning_rate), "--guidance_scale", str(args.guidance_scale), "--seed", str(args.seed),
    ]  # fmt: skip


def launch_lcm(command: list[str], folder: Path) -> None:
    """Run the LCM distillation, unless `folder` contains the result of the same command.

    Raises:
        EvaluationError: the folder contains the result of another command, or the distillation failed.
    """
    if (folder / LCM_RECORD).exists():
        there = json.loads((folder / LCM_RECORD).read_text(encoding="utf-8"))["command"]
        if there == shlex.join(command):
            return
        raise EvaluationError(f"--output_dir: {folder} was made by `{there}`; delete it or give another --output_dir.")
    if status := subprocess.run([sys.executable, *command[1:]]).returncode:
        raise EvaluationError(f"`{shlex.join(command)}` ended with status {status}.")


def compare_methods(args: argparse.Namespace, words: Sequence[str]) -> None:
    """Distil with LCM, measure all systems, and write the page."""
    complete_arguments(args)
    judge = TinyJudge(args.tiny_dir, args.num_samples)
    quiet_libraries()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    command = lcm_command(args)
    folders = {"teacher": args.tiny_dir / "teacher", "lcm": args.output_dir / "lcm", "add": args.add_student}
    launch_lcm(command, folders["lcm"])
    lines, rows = table_entries(args.guidance_scale), []
    for number, entry in enumerate(lines, start=1):
        print(f"[{number}/{len(lines)}] {entry.system}", flush=True)
        rows.append(judge.measure_system(load_entry(entry, folders), entry.system))
    notes = describe_environment(judge.device)
    commands = [*args.commands, shlex.join(command), shlex.join([*command_name(MODULE).split(), *words])]
    updates = (
        f"LCM: {args.updates} updates at batch {args.batch_size}, as the ADD student had unless the commands say "
        "otherwise."
    )
    content = {
        "claims": check_claims(rows),
        "systems": [{**asdict(row), "paper": entry.paper} for entry, row in zip(lines, rows)],
        "real": asdict(judge.floor),
        "updates": args.updates,
        "batch_size": args.batch_size,
        "commands": commands,
        "environment": notes,
    }
    write_json(args.output_dir / "comparison.json", content)
    page = table2_markdown(lines, judge.floor, rows, updates, commands, notes)
    write_atomically(args.output_dir / "comparison.md", page.encode())
    print(page)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process.

    Raises:
        SystemExit: the command failed; it has the exit status.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    run_command(make_comparison_parser(), words, lambda args: compare_methods(args, words))


if __name__ == "__main__":
    main()

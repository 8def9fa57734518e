"""Measure a student of the tiny world, and compare it with its teacher and real data.

    python -m examples.demo.report --tiny_dir build/tiny --student build/student --output_dir build/demo

Writes `report.md`, `report.json`, `samples.png` and `training.png` to `--output_dir`. All systems use the same captions
and seeds: each held-out caption once for Frechet distance and alignment, and a few captions several times for diversity
and for the pictures.
"""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from evaluation.command_line import OneLineParser, make_parser
from evaluation.errors import EvaluationError, require_packages
from evaluation.metrics import Evaluator
from evaluation.runs.environment import package_versions
from evaluation.tiny.split import Split, read_split
from evaluation.tiny.systems import System, SystemFigures
from evaluation.tiny.task import (
    CAPTIONS,
    NOISES,
    choose_captions,
    make_task,
    measure_real,
    measure_system,
    to_unit,
)
from examples.demo.summary import reach_verdict, report_markdown
from pipelines import ADDPipeline
from training.command import run_command

if TYPE_CHECKING:
    from examples.demo.samples import Panel

TEACHER_STEPS, STUDENT_STEPS = (1, 2, 4, 25), (1, 2, 4)
EVENT_FILES = "events.out.tfevents.*"
FLAGS = ("tiny_dir", "student", "output_dir", "num_samples", "teacher_guidance_scale", "teacher_timestep_spacing",
         "logging_dir", "seed")  # fmt: skip


def make_report_parser() -> OneLineParser:
    """Make the parser of `python -m examples.demo.report`."""
    parser = make_parser("examples.demo.report", __doc__)
    add = parser.add_argument
    add("--tiny_dir", type=Path, required=True, help="Folder of the tiny world with data/, teacher/ and evaluator/.")
    add("--student", type=Path, required=True, help="Output folder of train_add.py.")
    add("--output_dir", type=Path, required=True, help="Folder for the report.")
    add("--num_samples", type=int, default=500, help="Number of images per system for distance and alignment.")
    add("--teacher_guidance_scale", type=float, default=2.0, help="Guidance scale for the teacher with guidance.")
    add(
        "--teacher_timestep_spacing",
        choices=("leading", "linspace", "trailing"),
        help="Timestep spacing of the teacher's scheduler. Defaults to the saved one (`leading` makes a single step at "
        "t = 1).",
    )
    add("--logging_dir", type=Path, help="Folder of tensorboard event files. Defaults to logs/ in --student.")
    add("--seed", type=int, default=0, help="Seed for captions and noises.")
    add("--commands", nargs="*", default=[], help="Commands that made the inputs, for the report.")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Check the options before anything is loaded.

    Raises:
        EvaluationError: an option is invalid, or a package is not installed.
    """
    require_packages("torchmetrics", "matplotlib", "tensorboard")
    for name in ("data/train", "data/test", "teacher/model_index.json", "evaluator/config.json"):
        if not (args.tiny_dir / name).exists():
            raise EvaluationError(
                f"--tiny_dir {args.tiny_dir}: no {name} there; build it with `python -m examples.tiny.build`."
            )
    if not (args.student / "model_index.json").exists():
        raise EvaluationError(
            f"--student {args.student}: no model_index.json there; give the --output_dir of train_add.py."
        )
    if args.num_samples < 2:
        raise EvaluationError(f"--num_samples {args.num_samples}: a covariance needs at least 2.")
    if not 1 < args.teacher_guidance_scale < float("inf"):
        raise EvaluationError(f"--teacher_guidance_scale {args.teacher_guidance_scale}: give a finite number above 1.")
    if args.logging_dir and not any(args.logging_dir.rglob(EVENT_FILES)):
        raise EvaluationError(
            f"--logging_dir {args.logging_dir}: it contains no {EVENT_FILES}; give the --logging_dir of train_add.py."
        )


def load_pipelines(args: argparse.Namespace, device: str) -> dict[str, DiffusionPipeline]:
    """Load teacher and student with their saved schedulers."""
    teacher = DiffusionPipeline.from_pretrained(args.tiny_dir / "teacher")
    if args.teacher_timestep_spacing:
        teacher.scheduler = teacher.scheduler.from_config(
            teacher.scheduler.config, timestep_spacing=args.teacher_timestep_spacing
        )
    pipelines = {"teacher": teacher, "student": ADDPipeline.from_pretrained(args.student)}
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(device)
    return pipelines


def sample_panels(samples: dict[System, Tensor], real: Split, captions: list[str], guidance: float) -> list["Panel"]:
    """Choose the pictures: all captions with one noise, and one caption with many noises.

    `samples` has the images `(captions, NOISES, 3, H, W)` of each system; the teacher is shown with `guidance`.
    """
    from examples.demo.samples import Panel

    pixels = to_unit(real.pixels)
    teacher, blurred = System("teacher", 25, guidance), System("teacher", 1, guidance)
    students = [System("student", steps, 0.0) for steps in STUDENT_STEPS]
    every = {"real": torch.stack([pixels[real.captions.index(caption)] for caption in captions])}
    every |= {str(system): samples[system][:, 0] for system in (teacher, blurred, *students)}
    one = {"real": pixels[[caption == captions[0] for caption in real.captions]][:NOISES]}
    one |= {str(system): samples[system][0] for system in (teacher, students[0])}
    return [
        Panel(f"{len(captions)} captions, each from the same noise in every row", captions, every),
        Panel(f"“{captions[0]}” from {NOISES} noises", [], one),
    ]


def describe_environment(args: argparse.Namespace, device: str) -> dict:
    """Description of the environment, to be stored with the figures."""
    return {
        **package_versions(),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "num_samples": args.num_samples,
        "seed": args.seed,
    }


def make_report(args: argparse.Namespace) -> None:
    """Measure all systems and write the report."""
    check_arguments(args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, test = (read_split(args.tiny_dir / "data" / split) for split in ("train", "test"))
    evaluator = Evaluator.from_pretrained(str(args.tiny_dir / "evaluator")).to(device)
    everything = Split(
        torch.cat([test.pixels, train.pixels]), test.captions + train.captions, test.labels + train.labels
    )
    captions = choose_captions(everything.captions, everything.labels, CAPTIONS)
    task = make_task(test, captions, evaluator.label_ids, args.num_samples, args.seed)
    real_row, real_features = measure_real(evaluator, train, test, task, args.seed)

    scales = (1.0, args.teacher_guidance_scale)
    systems = [System("teacher", steps, guidance) for guidance in scales for steps in TEACHER_STEPS]
    systems += [System("student", steps, 0.0) for steps in STUDENT_STEPS]
    pipelines = load_pipelines(args, device)
    rows, samples = [real_row], {}
    total = len(task.prompts) * sum(system.network_calls for system in systems)
    with tqdm(total=total, unit="call", unit_scale=True) as progress:
        for system in systems:
            row, samples[system] = measure_system(
                pipelines[system.name], system, task, evaluator, real_features, progress
            )
            rows.append(row)

    panels = sample_panels(samples, everything, captions, args.teacher_guidance_scale)
    write_report(args, rows, panels, describe_environment(args, device))


def write_report(args: argparse.Namespace, rows: list[SystemFigures], panels: list["Panel"], environment: dict) -> None:
    """Write the four files to `args.output_dir`; `training.png` only if there are event files."""
    from examples.demo.curves import choose_curves, draw_training, read_scalars
    from examples.demo.samples import draw_samples

    out = args.output_dir
    out.mkdir(parents=True, exist_ok=True)
    draw_samples(out / "samples.png", panels)
    scalars = read_scalars(args.logging_dir or args.student / "logs")
    training = out / "training.png"
    training.unlink(missing_ok=True)
    curves = choose_curves(scalars)
    if curves:
        draw_training(training, curves, scalars)
    flags = {flag: value for flag, value in vars(args).items() if flag in FLAGS and value is not None}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    commands = [*args.commands, shlex.join(["python", "-m", "examples.demo.report", *words])]
    report = {
        "systems": [asdict(row) for row in rows],
        "verdict": reach_verdict(rows),
        "commands": commands,
        "environment": environment,
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    page = report_markdown(rows, environment, commands, training if curves else None)
    (out / "report.md").write_text(page, encoding="utf-8")
    print(report["verdict"]["text"])
    print(f"The report is {out / 'report.md'}.")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process.

    Raises:
        SystemExit: the command failed; it has the exit status.
    """
    run_command(make_report_parser(), sys.argv[1:] if argv is None else argv, make_report)


if __name__ == "__main__":
    main()

"""Measure a distilled student of the tiny world beside its teacher and beside real data.

    python -m examples.demo.report --tiny_dir build/tiny --student build/student --output_dir build/demo

Writes `report.md`, `report.json`, `samples.png` and `training.png` to `--output_dir`. Every system draws the same
captions from the same seeds: held-out captions once each for Frechet distance and alignment, then a few captions
several times each for diversity and for the pictures.
"""

import argparse
import json
import os
import platform
import shlex
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from evaluation import Evaluator
from evaluation.tiny.systems import Row, System
from evaluation.tiny.task import CAPTIONS, NOISES, choose_captions, make_task, measure, measure_real, to_unit
from examples.demo.figures import EVENT_FILES, Panel, draw_samples, draw_training, read_scalars
from examples.demo.summary import markdown, verdict
from examples.tiny.data import Split, read_split
from pipelines import ADDPipeline

TEACHER_STEPS, STUDENT_STEPS = (1, 2, 4, 25), (1, 2, 4)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line, before anything is loaded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny_dir", type=Path, required=True, help="tiny world: data/, teacher/ and evaluator/")
    parser.add_argument("--student", type=Path, required=True, help="folder that train_add.py published")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the report goes")
    parser.add_argument("--num_samples", type=int, default=500, help="images a system for distance and alignment")
    parser.add_argument("--teacher_guidance_scale", type=float, default=2.0, help="guidance of the guided teacher rows")
    parser.add_argument(
        "--teacher_timestep_spacing",
        choices=("leading", "linspace", "trailing"),
        help="timesteps of the teacher's scheduler; default: as saved (`leading` takes ONE step at t = 1)",
    )
    parser.add_argument("--logging_dir", type=Path, help="tensorboard event files; default: logs/ in --student")
    parser.add_argument("--seed", type=int, default=0, help="draws captions and noises")
    parser.add_argument("--commands", nargs="*", default=[], help="the commands that made the inputs, to be quoted")
    args = parser.parse_args(argv)
    for name in ("data/train", "data/test", "teacher/model_index.json", "evaluator/config.json"):
        if not (args.tiny_dir / name).exists():
            parser.error(f"--tiny_dir {args.tiny_dir}: no {name} there; build it with `python -m examples.tiny.build`.")
    if not (args.student / "model_index.json").exists():
        parser.error(f"--student {args.student}: no model_index.json there; give the --output_dir of train_add.py.")
    if args.num_samples < 2:
        parser.error(f"--num_samples {args.num_samples}: a covariance needs at least 2.")
    if args.teacher_guidance_scale <= 1:
        parser.error(f"--teacher_guidance_scale {args.teacher_guidance_scale}: guidance begins above 1.")
    if args.logging_dir and not any(args.logging_dir.rglob(EVENT_FILES)):
        parser.error(f"--logging_dir {args.logging_dir}: no {EVENT_FILES} below it; give train_add.py's --logging_dir.")
    return args


def load_pipelines(args: argparse.Namespace, device: str) -> dict[str, DiffusionPipeline]:
    """Load teacher and student, each with its own scheduler as saved."""
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


def sample_panels(samples: dict[System, Tensor], real: Split, captions: list[str], guidance: float) -> list[Panel]:
    """Choose the pictures: every caption from one noise, then one caption from many noises.

    `samples` holds the `(captions, NOISES, 3, H, W)` of each system; the teacher is shown with `guidance`.
    """
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
    """Whatever a figure may depend on beside the commands."""
    packages = ("torch", "diffusers", "transformers", "torchmetrics")
    return {
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "num_samples": args.num_samples,
        "seed": args.seed,
    }


def main(argv: list[str] | None = None) -> None:
    """Measure everything, then write the report."""
    args = parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, test = (read_split(args.tiny_dir / "data" / split) for split in ("train", "test"))
    evaluator = Evaluator.from_pretrained(str(args.tiny_dir / "evaluator")).to(device)
    everything = Split(
        torch.cat([test.pixels, train.pixels]), test.captions + train.captions, test.labels + train.labels
    )
    captions = choose_captions(everything.captions, everything.labels, CAPTIONS)
    task = make_task(test, captions, evaluator.model.config.label2id, args.num_samples, args.seed)
    real_row, real_features = measure_real(evaluator, train, test, task, args.seed)

    scales = (1.0, args.teacher_guidance_scale)
    systems = [System("teacher", steps, guidance) for guidance in scales for steps in TEACHER_STEPS]
    systems += [System("student", steps, 0.0) for steps in STUDENT_STEPS]
    pipelines = load_pipelines(args, device)
    rows, samples = [real_row], {}
    total = len(task.prompts) * sum(system.network_calls for system in systems)
    with tqdm(total=total, unit="call", unit_scale=True) as progress:
        for system in systems:
            row, samples[system] = measure(pipelines[system.name], system, task, evaluator, real_features, progress)
            rows.append(row)

    panels = sample_panels(samples, everything, captions, args.teacher_guidance_scale)
    write_report(args, rows, panels, describe_environment(args, device))


def write_report(args: argparse.Namespace, rows: list[Row], panels: list[Panel], environment: dict) -> None:
    """Write the four files to `args.output_dir`; `training.png` only if there are event files."""
    out = args.output_dir
    out.mkdir(parents=True, exist_ok=True)
    draw_samples(out / "samples.png", panels)
    scalars = read_scalars(args.logging_dir or args.student / "logs")
    training = out / "training.png"
    training.unlink(missing_ok=True)
    if scalars:
        draw_training(training, scalars)
    flags = {flag: value for flag, value in vars(args).items() if flag != "commands" and value is not None}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    commands = [*args.commands, shlex.join(["python", "-m", "examples.demo.report", *words])]
    report = {
        "systems": [asdict(row) for row in rows],
        "verdict": verdict(rows),
        "commands": commands,
        "environment": environment,
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    page = markdown(rows, environment, commands, training if scalars else None)
    (out / "report.md").write_text(page, encoding="utf-8")
    print(report["verdict"]["text"])


if __name__ == "__main__":
    main()

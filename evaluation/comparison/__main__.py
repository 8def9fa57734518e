"""Table 2 of the paper on the tiny world: one teacher, distilled by ADD and by LCM, beside its own fast samplers.

    python -m evaluation.comparison --tiny_dir build/tiny --add_student build/demo/student --output_dir build/comparison

Distils the teacher by LCM with as many updates and as large a batch as the ADD student had (`add_run.json` beside its
weights says so), then has everybody draw the same captions from the same seeds. Writes `comparison.md` and
`comparison.json`. A distilled LCM is kept.
"""

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from evaluation import environment
from evaluation.errors import EvaluationError, exit_status
from evaluation.comparison.consistency import RECORD
from evaluation.runs.run import write_aside, write_json
from evaluation.tiny.systems import Row, System
from evaluation.tiny.judge import TinyJudge, quiet_libraries

STEPS = (1, 2, 4)
RUN_FILE = "add_run.json"


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
        name: with the sampler.
        model: `teacher`, `lcm` or `add`.
        scheduler: class of diffusers; None for the repo's own.
        scheduler_args: replaces entries of its configuration.
        paper: FID, CLIP score and seconds of the line of Table 2 that it corresponds to.
    """

    name: str
    model: str
    steps: int
    guidance: float
    scheduler: str | None = None
    scheduler_args: dict[str, Any] = field(default_factory=dict)
    paper: tuple[float, float, float] | None = None

    @property
    def system(self) -> System:
        """What is drawn with."""
        return System(self.name, self.steps, self.guidance)


def entries(guidance: float) -> list[Entry]:
    """All lines. The teacher stands with and without guidance; students have none."""
    solver = {"scheduler": "DPMSolverMultistepScheduler", "scheduler_args": {"algorithm_type": "dpmsolver++"}}
    # What the released Turbo models ship; from one step to the next it has the same law as the student's own.
    released = {"scheduler": "EulerAncestralDiscreteScheduler", "scheduler_args": {"timestep_spacing": "trailing"}}
    # The paper guides its teacher (it does not say how strongly): its figures stand at the guided lines.
    paper = {25: (20.1, 0.318, 0.88), 8: (31.7, 0.320, 0.34)}
    lines = []
    for scale in (1.0, guidance):
        for steps in (25, 8):
            found = paper[steps] if scale > 1 else None
            lines.append(Entry("teacher, DPM-Solver++", "teacher", steps, scale, paper=found, **solver))
        lines += [Entry("teacher, DDIM", "teacher", steps, scale, "DDIMScheduler") for steps in (25, 8, *STEPS)]
    lines += [Entry("LCM", "lcm", steps, 0.0) for steps in STEPS]
    lines += [Entry("ADD", "add", steps, 0.0, paper=(19.7, 0.326, 0.09) if steps == 1 else None) for steps in STEPS]
    return lines + [Entry("ADD, released sampler", "add", steps, 0.0, **released) for steps in STEPS]


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.comparison",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tiny_dir", type=Path, required=True, help="the tiny world that the student was distilled in")
    add("--add_student", type=Path, required=True, help="what train_add.py published")
    add("--output_dir", type=Path, required=True, help="lcm/, comparison.md and comparison.json")
    add("--updates", type=int, default=None, help="of LCM; default: as many as the ADD student's")
    add("--batch_size", type=int, default=None, help="of LCM; default: the ADD student's")
    add("--lcm_learning_rate", type=float, default=1e-4, help="default: 1e-4")
    add("--guidance_scale", type=float, default=2.0, help="of the guided teacher, in sampling and for LCM; default: 2")
    add("--num_samples", type=int, default=500, help="images a line; default: 500")
    add("--seed", type=int, default=0, help="of LCM's training; default: 0")
    add("--commands", nargs="*", default=[], help="the commands that made world and student, to be quoted")
    return parser


def resolve(args: argparse.Namespace) -> None:
    """Check the flags, and take what was not given from the ADD student.

    Raises:
        EvaluationError: no student there, it does not say how it was trained, or a flag that cannot work.
    """
    if not (args.add_student / "model_index.json").exists():
        raise EvaluationError(
            f"--add_student {args.add_student}: no model_index.json there; give train_add.py's output."
        )
    path = args.add_student / RUN_FILE
    facts = json.loads(path.read_text(encoding="utf-8"))["facts"] if path.exists() else {}
    for flag, fact in (("updates", "iterations"), ("batch_size", "effective batch")):
        if getattr(args, flag) is None:
            if fact not in facts:
                raise EvaluationError(f"--{flag}: {path} does not say it; give the ADD student's.")
            setattr(args, flag, facts[fact])
    if args.guidance_scale <= 1:
        raise EvaluationError(f"--guidance_scale {args.guidance_scale}: guidance begins above 1.")


def lcm_command(args: argparse.Namespace) -> list[str]:
    """What distils the teacher by LCM."""
    folder = args.output_dir / "lcm"
    return [
        "python", "-m", "evaluation.lcm", "--tiny_dir", str(args.tiny_dir), "--output_dir", str(folder), "--updates",
        str(args.updates), "--batch_size", str(args.batch_size), "--learning_rate",
        str(args.lcm_learning_rate), "--guidance_scale", str(args.guidance_scale), "--seed", str(args.seed),
    ]  # fmt: skip


def distil(command: list[str], folder: Path) -> None:
    """Run LCM's distillation, unless `folder` has what this very command made.

    Raises:
        EvaluationError: it has what another command made, or the distillation failed.
    """
    if (folder / RECORD).exists():
        there = json.loads((folder / RECORD).read_text(encoding="utf-8"))["command"]
        if there == shlex.join(command):
            return
        raise EvaluationError(f"--output_dir: {folder} was made by `{there}`; delete it or give another --output_dir.")
    if status := subprocess.run([sys.executable, *command[1:]]).returncode:
        raise EvaluationError(f"`{shlex.join(command)}` ended with status {status}.")


def load(entry: Entry, folders: dict[str, Path]) -> DiffusionPipeline:
    """The stock pipeline of an entry, with its sampler."""
    pipeline = DiffusionPipeline.from_pretrained(folders[entry.model])
    if entry.scheduler:
        kind = getattr(diffusers, entry.scheduler)
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **entry.scheduler_args)
    return pipeline


def claims(rows: list[Row]) -> list[dict[str, Any]]:
    """What Table 2 and Figure 5 of the paper say of ADD's one step, held against these rows.

    Each is a comparison of Frechet distances, the teacher's being its best over guidance. Returns `claim`, `met`, and
    `ratio` of the distances, below 1 where ADD is nearer to the held-out images.
    """

    def distance(name: str, steps: int) -> float:
        return min(row.fd for row in rows if (row.name, row.steps) == (name, steps))

    others = [("LCM", 1), ("LCM", 4), ("teacher, DPM-Solver++", 8), ("teacher, DPM-Solver++", 25)]
    ratios = {System(*other, guidance=None): distance("ADD", 1) / distance(*other) for other in others}
    return [
        {"claim": f"ADD, 1 step, is nearer to the data than {other}", "met": ratio < 1, "ratio": ratio}
        for other, ratio in ratios.items()
    ]


def markdown(
    lines: list[Entry], floor: Row, rows: list[Row], updates: str, commands: list[str], notes: dict[str, Any]
) -> str:
    """Compose the page. `updates` says how the students were trained, `notes` what the figures depend on."""
    head = ["system", "steps", "guidance", "FD ↓", "agreement ↑", "diversity", "s / image ↓", "paper: FID, CLIP, s"]
    table = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for entry, row in [(None, floor), *zip(lines, rows, strict=True)]:
        paper = ", ".join(map("{:g}".format, entry.paper)) if entry and entry.paper else "-"
        cells = [
            row.name, row.steps or "-", f"{row.guidance:g}" if row.guided else "-", f"{row.fd:.2f}",
            f"{row.alignment:.3f}", "-" if row.diversity is None else f"{row.diversity:.2f}",
            "-" if row.seconds_per_image is None else f"{row.seconds_per_image:.4f}", paper,
        ]  # fmt: skip
        table.append("| " + " | ".join(map(str, cells)) + " |")
    judged = [
        f"- {claim['claim']}: **{'yes' if claim['met'] else 'no'}** (ratio of the distances {claim['ratio']:.2f})"
        for claim in claims(rows)
    ]
    parts = [
        "# Table 2 on the tiny world: ADD and LCM from one teacher",
        "\n".join(judged),
        "\n".join(table),
        f"{updates} One training of each: a ratio near 1 says nothing.",
        "FD: Frechet distance to held-out images in the evaluator's features; `real`, as many training images, is the "
        "floor. Agreement: share of images of the class that the caption names. Seconds: one image at batch 1. The "
        "paper's figures are of SD 1.5 on COCO at 512 pixels: compare the order, not the numbers.",
        "## How to repeat",
        "```sh\n" + "\n".join(commands) + "\n```",
        "Measured with " + ", ".join(f"{key} {value}" for key, value in notes.items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def compare(args: argparse.Namespace, argv: list[str]) -> None:
    """Distil, measure, write."""
    resolve(args)
    judge = TinyJudge(args.tiny_dir, args.num_samples)
    quiet_libraries()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    command = lcm_command(args)
    folders = {"teacher": args.tiny_dir / "teacher", "lcm": args.output_dir / "lcm", "add": args.add_student}
    distil(command, folders["lcm"])
    lines, rows = entries(args.guidance_scale), []
    for number, entry in enumerate(lines, start=1):
        print(f"[{number}/{len(lines)}] {entry.system}", flush=True)
        rows.append(judge.measure(load(entry, folders), entry.system))
    notes = environment.describe(judge.device)
    commands = [*args.commands, shlex.join(command), shlex.join(["python", "-m", "evaluation.comparison", *argv])]
    updates = f"LCM: {args.updates} updates at batch {args.batch_size}, as the ADD student unless the commands say not."
    content = {
        "claims": claims(rows),
        "systems": [{**asdict(row), "paper": entry.paper} for entry, row in zip(lines, rows)],
        "real": asdict(judge.floor),
        "updates": args.updates,
        "batch_size": args.batch_size,
        "commands": commands,
        "environment": notes,
    }
    write_json(args.output_dir / "comparison.json", content)
    page = markdown(lines, judge.floor, rows, updates, commands, notes)
    write_aside(args.output_dir / "comparison.md", page.encode())
    print(page)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser().parse_args(argv)
    return exit_status(lambda: compare(args, argv))


if __name__ == "__main__":
    sys.exit(main())

"""The rows of Table 2, the paper's claims about them, and the page with both."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from evaluation.tiny.systems import System, SystemFigures
from training.markdown import code_block, escape_markdown

STEPS = (1, 2, 4)


@dataclass(frozen=True)
class TableEntry:
    """A row of the table.

    Attributes:
        name: name of the model and its sampler.
        model: `teacher`, `lcm` or `add`.
        scheduler: scheduler class of diffusers; None for that of the repo.
        scheduler_args: updates of the scheduler's config.
        paper: FID, CLIP score and seconds of the corresponding row of Table 2.
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
        """The system that is measured."""
        return System(self.name, self.steps, self.guidance)


def table_entries(guidance: float) -> list[TableEntry]:
    """All rows of the table: the teacher with and without `guidance`, and the students without guidance."""
    solver = {"scheduler": "DPMSolverMultistepScheduler", "scheduler_args": {"algorithm_type": "dpmsolver++"}}
    # The scheduler of the released Turbo models. Its steps have the same distribution as the student's own.
    released = {"scheduler": "EulerAncestralDiscreteScheduler", "scheduler_args": {"timestep_spacing": "trailing"}}
    # The paper uses guidance for the teacher, with an unknown scale, so its figures are in the rows with guidance.
    paper = {25: (20.1, 0.318, 0.88), 8: (31.7, 0.320, 0.34)}
    lines = []
    for scale in (1.0, guidance):
        for steps in (25, 8):
            found = paper[steps] if scale > 1 else None
            lines.append(TableEntry("teacher, DPM-Solver++", "teacher", steps, scale, paper=found, **solver))
        lines += [TableEntry("teacher, DDIM", "teacher", steps, scale, "DDIMScheduler") for steps in (25, 8, *STEPS)]
    lines += [TableEntry("LCM", "lcm", steps, 0.0) for steps in STEPS]
    lines += [
        TableEntry("ADD", "add", steps, 0.0, paper=(19.7, 0.326, 0.09) if steps == 1 else None) for steps in STEPS
    ]
    return lines + [TableEntry("ADD, released sampler", "add", steps, 0.0, **released) for steps in STEPS]


def load_entry(entry: TableEntry, folders: dict[str, Path]) -> DiffusionPipeline:
    """Load the stock pipeline of an entry, with its scheduler."""
    pipeline = DiffusionPipeline.from_pretrained(folders[entry.model])
    if entry.scheduler:
        kind = getattr(diffusers, entry.scheduler)
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **entry.scheduler_args)
    return pipeline


def check_claims(rows: list[SystemFigures]) -> list[dict[str, Any]]:
    """Check the claims of Table 2 and Figure 5 of the paper about one step of ADD against these rows.

    Each claim compares Frechet distances; of the teacher, the best one over guidance is used. Returns `claim`, `met`,
    and `ratio` of the distances, which is below 1 if ADD is closer to the held-out images.
    """

    def distance(name: str, steps: int) -> float:
        return min(row.fd for row in rows if (row.name, row.steps) == (name, steps))

    others = [("LCM", 1), ("LCM", 4), ("teacher, DPM-Solver++", 8), ("teacher, DPM-Solver++", 25)]
    ratios = {System(*other, guidance=None): distance("ADD", 1) / distance(*other) for other in others}
    return [
        {"claim": f"ADD, 1 step, is nearer to the data than {other}", "met": ratio < 1, "ratio": ratio}
        for other, ratio in ratios.items()
    ]


def table2_markdown(
    lines: list[TableEntry],
    floor: SystemFigures,
    rows: list[SystemFigures],
    updates: str,
    commands: list[str],
    notes: dict[str, Any],
) -> str:
    """Compose the page. `updates` describes the training of the students, `notes` the environment of the figures."""
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
        for claim in check_claims(rows)
    ]
    parts = [
        "# Table 2 on the tiny world: ADD and LCM from one teacher",
        "\n".join(judged),
        "\n".join(table),
        f"{updates} Each was trained once, so a ratio near 1 decides nothing.",
        "FD: Frechet distance to held-out images in the evaluator's features; `real`, as many training images, is the "
        "floor. Agreement: share of images of the class that the caption names. Seconds: one image at batch 1. The "
        "paper's figures are of SD 1.5 on COCO at 512 pixels: compare the order, not the numbers.",
        "## How to repeat",
        code_block("\n".join(commands), "sh"),
        "Measured with " + escape_markdown(", ".join(f"{key} {value}" for key, value in notes.items())) + ".",
    ]
    return "\n\n".join(parts) + "\n"

"""The report in words: the systems and their figures, the verdict, and the Markdown page."""

from dataclasses import dataclass
from pathlib import Path

PAPER_RATIO = 0.98  # Table 2: FID 19.7 of ADD-M in one step against 20.1 of DPM-Solver in 25


@dataclass(frozen=True)
class System:
    """Where images come from.

    Attributes:
        name: `real`, `teacher` or `student`.
        steps: sampling steps; None for real images.
        guidance: guidance scale, at most 1 for none; None for real images.
    """

    name: str
    steps: int | None
    guidance: float | None

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is on."""
        return self.guidance is not None and self.guidance > 1

    @property
    def network_calls(self) -> int:
        """UNet evaluations for an image: guidance takes two a step."""
        return self.steps * (2 if self.guided else 1)

    def __str__(self) -> str:
        """E.g. `teacher, 25 steps, guidance 2`."""
        steps = f", {self.steps} step{'s' * (self.steps > 1)}" if self.steps else ""
        return self.name + steps + (f", guidance {self.guidance:g}" if self.guided else "")


@dataclass(frozen=True)
class Row(System):
    """What was measured of one system.

    Attributes:
        fd: Frechet distance to the held-out images, in the evaluator's features.
        alignment: share of images in [0, 1] that the evaluator takes for what the caption says.
        diversity: mean distance of two images of one caption, in the evaluator's features; None for real images that
            have a caption each.
        seconds_per_image: latency at batch size 1; None for real images.
    """

    fd: float
    alignment: float
    diversity: float | None
    seconds_per_image: float | None


def verdict(rows: list[Row]) -> dict:
    """Hold the student's one step against the teacher's best row of most steps.

    The aim is a Frechet distance no higher and an alignment no lower. Returns `met`, `ratio` of the distances,
    `teacher` (the row it was held against) and `text`, one sentence.
    """
    most = max(row.steps for row in rows if row.name == "teacher")
    teacher = min((row for row in rows if row.name == "teacher" and row.steps == most), key=lambda row: row.fd)
    student = next(row for row in rows if row.name == "student" and row.steps == 1)
    ratio = student.fd / teacher.fd
    met = student.fd <= teacher.fd and student.alignment >= teacher.alignment
    compared = "no farther than" if ratio <= 1 else "farther than"
    text = (
        f"Aim {'met' if met else 'missed'}: the student's one step has a Frechet distance of {student.fd:.3g} from "
        f"held-out images, {compared} the {teacher.fd:.3g} of {teacher} (ratio {ratio:.2f}; the paper has "
        f"{PAPER_RATIO}), and {student.alignment:.1%} of its images are of the right class against "
        f"{teacher.alignment:.1%}."
    )
    return {"met": met, "ratio": ratio, "teacher": str(teacher), "text": text}


def table(rows: list[Row]) -> str:
    """Markdown table of all systems; diversity also as a share of that of real images."""
    real = next(row for row in rows if row.name == "real")
    lines = [
        "| system | steps | guidance | FD ↓ | alignment ↑ | diversity | relative to real | s / image ↓ |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        guidance = f"{row.guidance:g}" if row.guided else "-"
        variety = f"{row.diversity:.2f}" if row.diversity is not None else "-"
        relative = f"{row.diversity / real.diversity:.1%}" if real.diversity else "-"
        seconds = f"{row.seconds_per_image:.4f}" if row.seconds_per_image is not None else "-"
        lines.append(
            f"| {row.name} | {row.steps or '-'} | {guidance} | {row.fd:.2f} | {row.alignment:.1%} "
            f"| {variety} | {relative} | {seconds} |"
        )
    return "\n".join(lines)


def markdown(rows: list[Row], environment: dict, commands: list[str], training: Path | None) -> str:
    """Compose the page `report.md`. `training` is the picture of the training curves, if there were any."""
    curves = f"![curves of the training run]({training.name})" if training else "No tensorboard event files were found."
    systems = ", ".join(f"{key} {value}" for key, value in environment.items())
    return f"""# ADD on the tiny world: what one step is worth

**{verdict(rows)["text"]}**

{table(rows)}

- **FD**: Frechet distance between the evaluator's features of {environment["num_samples"]} samples and of the held-out
  images (zero is perfect; `real`, as many training images, is the floor).
- **alignment**: share of samples that the evaluator classifies as what the caption names. For `real`: its accuracy on
  held-out images.
- **diversity**: mean Euclidean distance between the features of two samples of one caption. Near the real images'
  value is good; far below it, the system draws one picture a caption.
- **s / image**: latency from caption to pixels at batch size 1, the median of several calls.

![samples of all systems](samples.png)

## Training

{curves}

## How to repeat

```sh
{chr(10).join(commands)}
```

Measured with {systems}.
"""

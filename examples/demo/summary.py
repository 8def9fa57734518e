"""Text of the report: the verdict, the table of all systems, and the Markdown page."""

from pathlib import Path

from evaluation.tiny.systems import SystemFigures
from training.markdown import code_block, escape_markdown

PAPER_RATIO = 0.98  # Table 2: FID 19.7 of ADD-M in one step against 20.1 of DPM-Solver in 25


def reach_verdict(rows: list[SystemFigures]) -> dict:
    """Compare one step of the student with the best row of the teacher with most steps.

    The aim is a Frechet distance no higher and an alignment no lower. Returns `met`, `ratio` of the distances,
    `teacher` (the row it was compared with) and `text`, one sentence.
    """
    most = max(row.steps or 0 for row in rows if row.name == "teacher")
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


def systems_table(rows: list[SystemFigures]) -> str:
    """Markdown table of all systems. Diversity is also given as a fraction of that of real images."""
    real = next(row for row in rows if row.name == "real")
    lines = [
        "| system | steps | guidance | FD ↓ | alignment ↑ | diversity | relative to real | s / image ↓ |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        guidance = f"{row.guidance:g}" if row.guided else "-"
        variety = f"{row.diversity:.2f}" if row.diversity is not None else "-"
        relative = f"{row.diversity / real.diversity:.1%}" if row.diversity is not None and real.diversity else "-"
        seconds = f"{row.seconds_per_image:.4f}" if row.seconds_per_image is not None else "-"
        lines.append(
            f"| {row.name} | {row.steps or '-'} | {guidance} | {row.fd:.2f} | {row.alignment:.1%} "
            f"| {variety} | {relative} | {seconds} |"
        )
    return "\n".join(lines)


def report_markdown(rows: list[SystemFigures], environment: dict, commands: list[str], training: Path | None) -> str:
    """The text of `report.md`. `training` is the image of the training curves, if any."""
    curves = f"![curves of the training run]({training.name})" if training else "No tensorboard event files were found."
    systems = escape_markdown(", ".join(f"{key} {value}" for key, value in environment.items()))
    return f"""# ADD on the tiny world: one step of the student beside the teacher

**{reach_verdict(rows)["text"]}**

{systems_table(rows)}

- **FD**: Frechet distance between the evaluator's features of {environment["num_samples"]} samples and of the held-out
  images (zero is perfect; `real`, as many training images, is the floor).
- **alignment**: share of samples that the evaluator classifies as what the caption names. For `real`: its accuracy on
  held-out images.
- **diversity**: mean Euclidean distance between the features of two samples of one caption. A value near that of
  real images is good; a value far below it means one picture for each caption.
- **s / image**: latency from caption to pixels at batch size 1, the median of several calls.

![samples of all systems](samples.png)

## Training

{curves}

## How to repeat

{code_block(chr(10).join(commands), "sh")}

Measured with {systems}.
"""

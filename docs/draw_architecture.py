"""Draws `docs/architecture.png` for ARCHITECTURE.md: the folders with their imports, and the path of a sample.

python docs/draw_architecture.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

OUTPUT = Path(__file__).parent / "architecture.png"
SCRIPT, ROOM, MATH, TOOL, DATA = "#fde2c4", "#d6e6f5", "#d9efd6", "#eeeeee", "#ffffff"
INK, MUTED = "#222222", "#777777"

# title, second line, left, bottom, width, height, color; the axes measure 100 x 62
BOXES = (
    ("train_add.py, train_add_sdxl.py", "the run: prepare, train, iteration, discriminator_step, student_step",
     1, 54, 62, 7, SCRIPT),
    ("training/", "", 1, 25, 62, 25, "#f4f8fc"),
    ("options", "flags", 1.8, 37.5, 11.6, 7, ROOM),
    ("data", "files, order", 14.0, 37.5, 11.6, 7, ROOM),
    ("encoding", "batches, cache", 26.2, 37.5, 11.6, 7, ROOM),
    ("models", "families, LoRA", 38.4, 37.5, 11.6, 7, ROOM),
    ("run", "parts, state", 50.6, 37.5, 11.6, 7, ROOM),
    ("checkpoints", "store", 1.8, 27.5, 11.6, 7, ROOM),
    ("processes", "signals", 14.0, 27.5, 11.6, 7, ROOM),
    ("monitoring", "figures, grids", 26.2, 27.5, 11.6, 7, ROOM),
    ("publishing", "card, Hub", 38.4, 27.5, 11.6, 7, ROOM),
    ("optimization", "guarded step", 50.6, 27.5, 11.6, 7, ROOM),
    ("distillation/", "schedule, student, teacher, losses", 1, 13.5, 30, 7.5, MATH),
    ("discriminator/", "features, heads, conditions", 1, 3, 30, 7.5, MATH),
    ("pipelines/", "ADDPipeline, stock scheduler", 36, 3, 27, 7.5, MATH),
    ("benchmarks/  examples/  evaluation/", "each imports those to its right", 66, 54, 33, 7, TOOL),
)  # fmt: skip

JOURNEY = (
    ("image file and caption", DATA),
    ("1  data: read, crop, order", ROOM),
    ("2  encoding: z0, embeddings, c", ROOM),
    ("3  distillation: student's sample", MATH),
    ("4  discriminator: Eq. 3, its step", MATH),
    ("5  teacher and losses: Eqs. 1, 2, 4", MATH),
    ("6  optimization: student's step, EMA", ROOM),
    ("7  checkpoints, publishing", ROOM),
    ("8  pipelines: published pixel", MATH),
)


def draw_box(
    axes: Axes, title: str, line: str, left: float, bottom: float, width: float, height: float, color: str
) -> None:
    """Draw a rounded box with a bold title and a second line. A box without a second line may contain other boxes."""
    shape = FancyBboxPatch(
        (left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.8", fc=color, ec=INK, lw=0.9
    )
    axes.add_patch(shape)
    middle = left + width / 2
    if line:
        axes.text(middle, bottom + height * 0.64, title, ha="center", va="center", fontsize=9, weight="bold", color=INK)
        axes.text(middle, bottom + height * 0.27, line, ha="center", va="center", fontsize=7.5, color=INK)
    else:
        y = bottom + (height - 2.6 if height > 10 else height / 2)
        axes.text(middle, y, title, ha="center", va="center", fontsize=9, weight="bold", color=INK)


def draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], style: str = "-") -> None:
    """Draw an arrow from an importing folder to an imported one."""
    axes.annotate(
        "", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.1, "linestyle": style}
    )


def draw_journey(axes: Axes) -> None:
    """Draw the path of a sample from top to bottom on the right."""
    left, width, height, top = 68, 30, 4, 46
    step = (top - 3) / len(JOURNEY)
    axes.text(left + width / 2, 49.2, "one sample's journey", ha="center", fontsize=9, style="italic", color=MUTED)
    for i, (text, color) in enumerate(JOURNEY):
        bottom = top - height - i * step + 1.5
        axes.add_patch(
            FancyBboxPatch(
                (left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.8", fc=color, ec=INK, lw=0.7
            )
        )
        axes.text(left + 1.2, bottom + height / 2, text, va="center", fontsize=7.8, color=INK)
        if i:
            axes.annotate(
                "", xy=(left + 3, bottom + height), xytext=(left + 3, bottom + step),
                arrowprops={"arrowstyle": "-|>", "color": MUTED, "lw": 0.9, "shrinkA": 0, "shrinkB": 0},
            )  # fmt: skip


def main() -> None:
    """Write the picture."""
    figure, axes = plt.subplots(figsize=(9, 5.6))
    axes.set(xlim=(0, 100), ylim=(0, 62))
    axes.axis("off")
    for box in BOXES:
        draw_box(axes, *box)
    draw_arrow(axes, (32, 54), (32, 50))
    draw_arrow(axes, (16, 25), (16, 21))
    draw_arrow(axes, (49.5, 25), (49.5, 10.5))
    draw_arrow(axes, (16, 13.5), (16, 10.5))
    draw_arrow(axes, (66, 57.5), (63, 57.5), style="--")
    axes.text(50.3, 17.5, "imports point\ndownwards only", fontsize=7.5, color=MUTED, style="italic", va="center")
    draw_journey(axes)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.01)
    figure.savefig(OUTPUT, dpi=100)


if __name__ == "__main__":
    main()

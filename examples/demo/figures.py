"""The report's two pictures: a grid of samples and the curves of a training run."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt

EVENT_FILES = "events.out.tfevents.*"
GAP = 0.06  # white space between images, as a share of their size
INCH = 0.92  # printed size of one image


@dataclass(frozen=True)
class Panel:
    """A titled table of images.

    Attributes:
        title: printed above.
        columns: one label for each column, or none.
        rows: label to images `(N, 3, H, W)` in [0, 1], N at most the number of columns.
    """

    title: str
    columns: list[str]
    rows: dict[str, Tensor]


def mosaic(rows: list[Tensor]) -> Tensor:
    """Lay rows of images `(N, 3, H, W)` side by side, left-aligned on white. Returns `(height, width, 3)`."""
    _, _, height, width = rows[0].shape
    gap = max(1, round(GAP * width))
    canvas = torch.ones(len(rows) * (height + gap) - gap, max(map(len, rows)) * (width + gap) - gap, 3)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = image.permute(1, 2, 0)
    return canvas


def draw_samples(path: Path, panels: list[Panel]) -> None:
    """Write `panels` below one another as an image file."""
    columns = max(len(images) for panel in panels for images in panel.rows.values())
    heights = [len(panel.rows) for panel in panels]
    size = (columns * INCH + 2.2, sum(heights) * INCH + 1.1 * len(panels))
    figure, axes = plt.subplots(len(panels), 1, figsize=size, height_ratios=heights, layout="constrained")
    for axis, panel in zip(np.atleast_1d(axes), panels):
        rows = list(panel.rows.values())
        axis.imshow(mosaic(rows).numpy(), interpolation="nearest", vmin=0, vmax=1)
        axis.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", pad=8)
        step = rows[0].shape[-1] + max(1, round(GAP * rows[0].shape[-1]))
        axis.set_yticks([i * step + rows[0].shape[-2] / 2 for i in range(len(rows))], panel.rows, fontsize=9)
        labels = [textwrap.fill(label, 15) for label in panel.columns]
        axis.set_xticks([i * step + rows[0].shape[-1] / 2 for i in range(len(labels))], labels, fontsize=7)
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def read_scalars(logging_dir: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Collect the scalars of all tensorboard event files under `logging_dir`: tag to (iterations, values).

    A resumed run repeats iterations; what was written last counts.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: dict[str, list] = {}
    for file in Path(logging_dir).rglob(EVENT_FILES):
        accumulator = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in accumulator.Tags()["scalars"]:
            events.setdefault(tag, []).extend(accumulator.Scalars(tag))
    curves = {}
    for tag in sorted(events):
        curve = {event.step: event.value for event in sorted(events[tag], key=lambda event: event.wall_time)}
        steps = sorted(curve)
        curves[tag] = np.array(steps), np.array([curve[step] for step in steps])
    return curves


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean over `window` (odd) values, over fewer at the ends. Same length as `values`."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def draw_training(path: Path, scalars: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write one plot for each quantity against the iteration: raw values pale, running mean bold.

    Quantities of one kind (the tag's part before "/") stand together and in one colour; `..._real` and `..._fake` share
    a plot, for they are read against one another.
    """
    plots: dict[str, list[str]] = {}
    for tag in scalars:
        plots.setdefault(tag.removesuffix("_real").removesuffix("_fake"), []).append(tag)
    kinds = sorted({tag.split("/")[0] for tag in scalars})
    columns = min(4, len(plots))
    rows = -(-len(plots) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.5 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(plots) :]:
        axis.set_axis_off()
    for axis, (title, tags) in zip(axes.flat, plots.items()):
        for i, tag in enumerate(tags):
            steps, values = scalars[tag]
            color = "black" if i else f"C{kinds.index(tag.split('/')[0])}"
            window = 2 * (len(values) // 50) + 1
            axis.plot(steps, values, color=color, alpha=0.25 if window > 1 else 1, linewidth=0.7)
            if window > 1:
                axis.plot(steps, smooth(values, window), color=color, linewidth=1.5)
            axis.plot([], [], color=color, label=tag.rsplit("_", 1)[-1])
        if len(tags) > 1:
            axis.legend(fontsize=7, frameon=False)
        axis.set_title(title, fontsize=9)
        axis.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
        axis.yaxis.get_offset_text().set_fontsize(7)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.2)
    figure.supxlabel("iteration", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)

"""Sample grids of several systems."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt

GAP = 0.06  # white space between images, as a fraction of their size
INCH = 0.92  # printed size of one image


@dataclass(frozen=True)
class Panel:
    """A titled table of images.

    Attributes:
        title: title above the table.
        columns: labels of the columns; may be empty.
        rows: images `(N, 3, H, W)` in [0, 1] by label, with N at most the number of columns.
    """

    title: str
    columns: list[str]
    rows: dict[str, Tensor]


def mosaic(rows: list[Tensor]) -> Tensor:
    """Arrange rows of images `(N, 3, H, W)` left-aligned on white. Returns `(height, width, 3)`."""
    _, _, height, width = rows[0].shape
    gap = max(1, round(GAP * width))
    canvas = torch.ones(len(rows) * (height + gap) - gap, max(map(len, rows)) * (width + gap) - gap, 3)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = image.permute(1, 2, 0)
    return canvas


def draw_samples(path: Path, panels: list[Panel]) -> None:
    """Write an image file with the `panels` below each other."""
    columns = max(len(images) for panel in panels for images in panel.rows.values())
    heights = [len(panel.rows) for panel in panels]
    size = (columns * INCH + 2.2, sum(heights) * INCH + 1.1 * len(panels))
    figure, axes = plt.subplots(len(panels), 1, figsize=size, height_ratios=heights, layout="constrained")
    for axis, panel in zip(np.atleast_1d(axes), panels):
        rows = list(panel.rows.values())
        axis.imshow(mosaic(rows).numpy(), interpolation="nearest", vmin=0, vmax=1)
        title = axis.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", pad=8)
        step = rows[0].shape[-1] + max(1, round(GAP * rows[0].shape[-1]))
        axis.set_yticks([i * step + rows[0].shape[-2] / 2 for i in range(len(rows))], panel.rows, fontsize=9)
        labels = [textwrap.fill(label, 15) for label in panel.columns]
        axis.set_xticks([i * step + rows[0].shape[-1] / 2 for i in range(len(labels))], labels, fontsize=7)
        axis.xaxis.tick_top()
        for text in (title, *axis.get_xticklabels(), *axis.get_yticklabels()):
            text.set_parse_math(False)  # captions are arbitrary text
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)

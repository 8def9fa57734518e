"""Plots of quality against seconds per image, as SVG for the comparison's page."""

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from evaluation.reports.figure_table import COLUMNS, RunRow

PANEL_SIZE = (4.4, 3.2)  # inches; the page shows a panel at about this size even on a narrow screen
LOG_FROM = 8.0  # times as long as the fastest: from here on a linear axis would crowd the fast runs
LABEL_HEIGHT = 13.0  # pixels at 72 dpi
MARGINS = {"x": 0.12, "y": 0.16}  # empty space around the points, as shares of what they span


def draw_quality_plots(rows: list[RunRow]) -> dict[str, str]:
    """SVG text by heading, one for each figure that a timed run has. Run names are drawn as plain text."""
    timed = [row for row in rows if "seconds_per_image" in row["figures"]]
    plots = {}
    for key, column in COLUMNS.items():
        shown = [(index, row) for index, row in enumerate(timed) if key in row["figures"]]
        if column.is_plotted and shown:
            # The salt keeps the ids of several drawings in one page apart.
            with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "font.family": "sans-serif"}):
                plots[column.heading] = _draw_panel(shown, key)
    return plots


def _draw_panel(rows: list[tuple[int, RunRow]], key: str) -> str:
    figure, axis = plt.subplots(figsize=PANEL_SIZE, dpi=72, layout="constrained")
    points = [(row["figures"]["seconds_per_image"]["value"], row["figures"][key]["value"]) for _, row in rows]
    for (index, _), point in zip(rows, points):
        axis.scatter(*point, color=f"C{index % 10}", s=46, zorder=3, clip_on=False)
    _choose_axes(axis, points, COLUMNS[key].is_share)
    axis.set_xlabel("seconds per image")
    axis.set_ylabel(COLUMNS[key].heading)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    figure.canvas.draw()  # places the axes, which the labels are placed in
    _label_points(axis, points, [row["name"] for _, row in rows])
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]  # without the XML prolog, which HTML does not allow


def _choose_axes(axis: plt.Axes, points: list[tuple[float, float]], is_share: bool) -> None:
    """Seconds on a logarithmic axis where they differ much; shares in percent and never beyond 0 or 100."""
    seconds, values = zip(*points)
    if max(seconds) >= LOG_FROM * min(seconds):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
    else:
        axis.set_xlim(0, 1.2 * max(seconds))
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.margins(**MARGINS)
    axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    if is_share:
        low, high = min(values), max(values)
        space = max(MARGINS["y"] * (high - low), 0.02)
        axis.set_ylim(max(0.0, low - space), min(1.0, high + space))
        axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    else:
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label_points(axis: plt.Axes, points: list[tuple[float, float]], names: list[str]) -> None:
    """Write each name beside its point, towards the middle of the panel, and apart from the names below it."""
    pixels = axis.transData.transform(points)
    middle = axis.transAxes.transform((0.5, 0.5))[0]
    lowest: dict[str, Any] = {"left": -1e9, "right": -1e9}  # of the free space, by the side that labels begin on
    for (x, y), name in sorted(zip(pixels.tolist(), names), key=lambda entry: entry[0][1]):
        side = "left" if x <= middle else "right"
        height = max(y, lowest[side])
        lowest[side] = height + LABEL_HEIGHT
        axis.annotate(
            name, (x, y), xycoords="figure pixels", xytext=(9 if side == "left" else -9, height - y),
            textcoords="offset pixels", ha=side, va="center", fontsize=9, parse_math=False,
        )  # fmt: skip

"""Plots of quality against seconds per image, as SVG for the comparison's page."""

import io

import matplotlib

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from evaluation.reports.figure_table import COLUMNS, RunRow

PANEL_SIZE = (4.4, 3.2)  # inches; the page shows a panel at about this size even on a narrow screen
LOG_FROM = 8.0  # ratio of slowest to fastest run from which the axis is logarithmic
LABEL_HEIGHT, LETTER_WIDTH = 13.0, 5.5  # pixels at 72 dpi
MARGINS = {"x": 0.12, "y": 0.16}  # empty space around the points, as fractions of their range


def draw_quality_plots(rows: list[RunRow]) -> dict[str, str]:
    """Make one SVG for each figure that a timed run has, by heading. Run names are drawn as plain text."""
    timed = [row for row in rows if "seconds_per_image" in row["figures"]]
    plots = {}
    for key, column in COLUMNS.items():
        shown = [(index, row) for index, row in enumerate(timed) if key in row["figures"]]
        if column.is_plotted and shown:
            # The salt makes the ids of several plots in one page different.
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
    figure.canvas.draw()  # computes the positions of the axes, which the labels depend on
    _label_points(axis, points, [row["name"] for _, row in rows])
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]  # without the XML prolog, which HTML does not allow


def _choose_axes(axis: plt.Axes, points: list[tuple[float, float]], is_share: bool) -> None:
    """Use a logarithmic axis for seconds if they differ much, and percent between 0 and 100 for fractions."""
    seconds, values = zip(*points)
    if max(seconds) >= LOG_FROM * min(seconds):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
    else:
        axis.set_xlim(0, 1.2 * max(seconds))
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.margins(x=MARGINS["x"], y=MARGINS["y"])
    axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    if is_share:
        low, high = min(values), max(values)
        space = max(MARGINS["y"] * (high - low), 0.02)
        axis.set_ylim(max(0.0, low - space), min(1.0, high + space))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    else:
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label_points(axis: plt.Axes, points: list[tuple[float, float]], names: list[str]) -> None:
    """Write each name beside its point, towards the middle of the panel, and below names that it would overlap."""
    pixels = axis.transData.transform(points).tolist()
    middle = axis.transAxes.transform((0.5, 0.5))[0]
    placed: list[tuple[float, float, float]] = []  # left and right end and height of the labels so far
    for (x, y), name in sorted(zip(pixels, names), key=lambda entry: -entry[0][1]):
        begins_left, width = x <= middle, LETTER_WIDTH * len(name)
        left, right = (x, x + width) if begins_left else (x - width, x)
        height = y
        for other_left, other_right, other_height in placed:
            if left < other_right and other_left < right and height > other_height - LABEL_HEIGHT:
                height = other_height - LABEL_HEIGHT
        placed.append((left, right, height))
        axis.annotate(
            name, (x, y), xycoords="figure pixels", xytext=(9 if begins_left else -9, height - y),
            textcoords="offset pixels", ha="left" if begins_left else "right", va="center", fontsize=9,
            parse_math=False,
        )  # fmt: skip

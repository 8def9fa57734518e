"""Plots of the training curves, each with a description of a good run."""

import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt
from matplotlib.layout_engine import ConstrainedLayoutEngine

Scalars = dict[str, tuple[np.ndarray, np.ndarray]]  # tag to iterations and values


def read_scalars(logging_dir: Path) -> Scalars:
    """Read the scalars of all tensorboard event files under `logging_dir`.

    If a resumed run has repeated iterations, the last value is used.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: dict[str, list] = {}
    for file in Path(logging_dir).rglob("events.out.tfevents.*"):
        accumulator = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in accumulator.Tags()["scalars"]:
            events.setdefault(tag, []).extend(accumulator.Scalars(tag))
    curves = {}
    for tag in sorted(events):
        curve = {event.step: event.value for event in sorted(events[tag], key=lambda event: event.wall_time)}
        steps = sorted(curve)
        curves[tag] = np.array(steps), np.array([curve[step] for step in steps])
    return curves


@dataclass(frozen=True)
class Curve:
    """One plot of the training curves.

    Attributes:
        title: title of the plot.
        tags: tags of the scalars with their labels.
        healthy: description of the plot for a good run, and of other possible cases.
        lines: values to compare with, and their labels.
        limits: limits of the vertical axis; None for automatic limits.
        only_above: only show the plot if a value exceeds this; None always shows it.
    """

    title: str
    tags: dict[str, str]
    healthy: str
    lines: dict[float, str] = field(default_factory=dict)
    limits: tuple[float, float] | None = None
    only_above: float | None = None


# All losses of the student are shown once. Learning rates and speed are only in the log.
CURVES = (
    Curve(
        "Accuracy of the discriminator",
        {"discriminator/accuracy_real": "real images", "discriminator/accuracy_fake": "student's images"},
        "Healthy: both between guessing and certainty. Both near 100 % for long: the discriminator has won, and the "
        "student learns little from it. Both at 50 %: it learns nothing.",
        {0.5: "guessing"},
        (0.0, 1.03),
    ),
    Curve(
        "Logits of the discriminator",
        {"discriminator/logits_real": "real images", "discriminator/logits_fake": "student's images"},
        "Healthy: real above student's, at a distance that settles. A distance that keeps growing: the discriminator "
        "runs away; raise --r1_gamma or lower its learning rate.",
        {0.0: "undecided"},
    ),
    Curve(
        "Hinge loss of the discriminator (Eq. 3)",
        {"loss/discriminator": "hinge loss"},
        "Healthy: above 0, where all images are told apart by a margin, and below 2 for each head, which is guessing.",
        {0.0: "certain"},
    ),
    Curve(
        "R1 penalty of the discriminator",
        {"loss/r1": "gamma x R1"},
        "Healthy: bounded, and small beside the hinge loss. A rise without end: the heads' gradients explode.",
        {0.0: ""},
    ),
    Curve(
        "Adversarial loss of the student (Eq. 2)",
        {"loss/adversarial": "adversarial loss"},
        "Healthy: no trend is needed, for its opponent learns as well. A steady rise: the student falls behind.",
    ),
    Curve(
        "Distillation loss of the student (Eq. 4)",
        {"loss/distillation": "distillation loss"},
        "Healthy: falls, then stays level. A rise while the adversarial loss falls: the student leaves the teacher; "
        "raise --distillation_weight.",
    ),
    Curve(
        "Skipped iterations",
        {"skipped_steps": "in total"},
        "Healthy: none, or a few at the start under fp16. These had a loss or gradient that was NaN or infinite.",
        only_above=0,
    ),
)
COLORS = ("black", "C0")


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centered running mean over `window` (odd) values, over fewer at the ends. Same length as `values`."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def choose_curves(scalars: Scalars) -> list[Curve]:
    """The plots of `CURVES` for which this run has data."""
    return [
        curve
        for curve in CURVES
        if any(tag in scalars for tag in curve.tags)
        and (curve.only_above is None or any(scalars[tag][1].max() > curve.only_above for tag in curve.tags))
    ]


def draw_training(path: Path, curves: list[Curve], scalars: Scalars) -> None:
    """Write the training curves as an image: pale raw values, bold running mean, and descriptions of a good run."""
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.7 * rows), squeeze=False)
    figure.set_layout_engine(ConstrainedLayoutEngine(hspace=0.06, wspace=0.05))
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    for axis, curve in zip(axes.flat, curves):
        _draw_curve(axis, curve, scalars)
    for axis in axes[-1]:
        axis.set_xlabel("iteration", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_curve(axis: plt.Axes, curve: Curve, scalars: Scalars) -> None:
    present = {tag: label for tag, label in curve.tags.items() if tag in scalars}
    for color, (tag, label) in zip(COLORS if len(curve.tags) > 1 else COLORS[1:], present.items()):
        steps, values = scalars[tag]
        window = 2 * (len(values) // 50) + 1
        axis.plot(steps, values, color=color, alpha=0.25 if window > 1 else 1, linewidth=0.7)
        axis.plot(steps, smooth(values, window), color=color, linewidth=1.6, label=label)
    for value, label in curve.lines.items():
        axis.axhline(value, color="0.45", linewidth=0.9, linestyle="--")
        axis.annotate(label, (1, value), xycoords=("axes fraction", "data"), xytext=(-3, 2),
                      textcoords="offset points", ha="right", fontsize=7.5, color="0.35")  # fmt: skip
    if len(present) > 1:
        axis.legend(fontsize=8, frameon=False)
    if curve.limits:
        axis.set_ylim(curve.limits)
    axis.set_title(curve.title, loc="left", fontsize=10.5, fontweight="bold", pad=46)
    axis.annotate(
        textwrap.fill(curve.healthy, 66), (0, 1), xycoords="axes fraction", xytext=(0, 41), textcoords="offset points",
        fontsize=8, color="0.3", va="top",
    )  # fmt: skip
    axis.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.2)
    axis.spines[["top", "right"]].set_visible(False)

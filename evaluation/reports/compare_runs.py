"""Several runs beside one another: a table, a plot of quality against speed, the same prompts and seeds in a grid."""

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from evaluation.errors import EvaluationError
from evaluation.reports.page import as_data_uri, render
from evaluation.runs.run import Run, write_aside, write_json

# Figure to heading, and how it is printed. The arrow says which way is better; diversity should be that of real data.
COLUMNS = {
    "fid": ("FID ↓", ".2f"),
    "fd_dinov2": ("FD DINOv2 ↓", ".1f"),
    "fd_evaluator": ("FD evaluator ↓", ".2f"),
    "clip_score": ("CLIP score ↑", ".3f"),
    "alignment": ("right class ↑", ".1%"),
    "elo": ("ELO ↑", ".0f"),
    "precision": ("precision ↑", ".3f"),
    "recall": ("recall ↑", ".3f"),
    "density": ("density ↑", ".3f"),
    "coverage": ("coverage ↑", ".3f"),
    "diversity": ("diversity", ".2f"),
    "seconds_per_image": ("s / image ↓", ".4g"),
    "peak_memory_gib": ("GiB ↓", ".2f"),
}
PLOTTED = ("fid", "fd_dinov2", "fd_evaluator", "clip_score", "alignment", "elo")


def collect(runs: list[Run], elo: dict[str, Any] | None) -> list[dict[str, Any]]:
    """One row a run: its name, arguments and figures (`{name: {"value": ..., ...}}`).

    Args:
        runs: to compare.
        elo: content of the file that `evaluation.preference elo` writes, or None.

    Raises:
        EvaluationError: the runs were measured differently, e.g. against other reference images.
    """
    rows = []
    for run in runs:
        measured = run.read("metrics.json") or {"figures": {}}
        figures = {**measured["figures"], **(run.read("speed.json") or {}).get("figures", {})}
        if elo and run.name in elo["elo"]:
            figures["elo"] = {"value": elo["elo"][run.name]["mean"], "definition": elo["definition"]}
        call = run.manifest.get("call", {})
        rows.append({"name": run.name, "steps": call.get("num_inference_steps"),
                     "guidance": call.get("guidance_scale"), "figures": figures})  # fmt: skip
    _require_same_measure(rows)
    return rows


def _require_same_measure(rows: list[dict[str, Any]]) -> None:
    """Biased figures compare only at equal numbers and with equal networks: every difference is refused."""
    for key in COLUMNS:
        conditions = {
            tuple(str(row["figures"][key].get(part)) for part in ("definition", "n", "n_reference", "reference"))
            for row in rows
            if key in row["figures"] and key not in ("seconds_per_image", "peak_memory_gib")
        }
        if len(conditions) > 1:
            raise EvaluationError(
                f"{key} was measured in different ways: {sorted(conditions)}. Measure the runs together."
            )


def present(rows: list[dict[str, Any]]) -> list[str]:
    """Figures that any run has, in the order of `COLUMNS`."""
    return [key for key in COLUMNS if any(key in row["figures"] for row in rows)]


def cells(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and printed cells of the table."""
    keys = present(rows)
    head = ["run", "steps", "guidance", *(COLUMNS[key][0] for key in keys)]
    body = []
    for row in rows:
        printed = [_print(row["figures"].get(key), COLUMNS[key][1]) for key in keys]
        body.append([row["name"], _print_plain(row["steps"]), _print_plain(row["guidance"]), *printed])
    return head, body


def _print(figure: dict[str, Any] | None, style: str) -> str:
    return format(figure["value"], style) if figure else "-"


def _print_plain(value: Any) -> str:
    return "-" if value is None else f"{value:g}"


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    head, body = cells(rows)
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def plot(rows: list[dict[str, Any]]) -> str | None:
    """Quality against seconds per image, one panel a figure, as SVG text; None where no run has both."""
    timed = [row for row in rows if "seconds_per_image" in row["figures"]]
    keys = [key for key in PLOTTED if any(key in row["figures"] for row in timed)]
    if not keys:
        return None
    columns = min(3, len(keys))
    lines = -(-len(keys) // columns)
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "add", "font.family": "sans-serif"}):
        figure, axes = plt.subplots(
            lines, columns, figsize=(4.6 * columns, 3.4 * lines), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(keys) :]:
            axis.set_axis_off()
        for axis, key in zip(axes.flat, keys):
            _draw_panel(axis, [row for row in timed if key in row["figures"]], key)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
        plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]  # without the XML prolog, which HTML does not allow


def _draw_panel(axis: plt.Axes, rows: list[dict[str, Any]], key: str) -> None:
    for index, row in enumerate(rows):
        point = row["figures"]["seconds_per_image"]["value"], row["figures"][key]["value"]
        axis.scatter(*point, color=f"C{index % 10}", s=42, zorder=3)
        axis.annotate(row["name"], point, xytext=(7, 5), textcoords="offset points", fontsize=9)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.margins(x=0.3, y=0.25)
    axis.set_xlabel("seconds per image")
    axis.set_title(COLUMNS[key][0], loc="left", fontsize=11)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def grid(runs: list[Run], count: int) -> list[dict[str, Any]]:
    """`count` prompts spread evenly over the list, each with every run's image of the same seed as a data URI."""
    total = len(runs[0].prompts)
    count = min(count, total)
    chosen = [index * total // count for index in range(count)]
    return [
        {
            "prompt": runs[0].prompts[index],
            "seed": runs[0].shots[index].seed,
            "images": [as_data_uri(run.load(run.shots[index])) for run in runs],
        }
        for index in chosen
    ]


def write_comparison(runs: list[Run], folder: Path, elo: dict[str, Any] | None, count: int, facts: dict) -> str:
    """Write `comparison.md`, `.json` and `.html` to `folder`. Returns the Markdown table.

    Args:
        runs: whole runs over the same prompts and seeds.
        folder: made if need be.
        elo: see `collect`.
        count: prompts in the grid.
        facts: the command and the machine, kept with the figures.
    """
    rows = collect(runs, elo)
    head, body = cells(rows)
    definitions = {
        COLUMNS[key][0]: next(row["figures"][key]["definition"] for row in rows if key in row["figures"])
        for key in present(rows)
    }
    page = render(
        "comparison.html",
        head=head,
        body=body,
        definitions=definitions,
        plot=plot(rows),
        names=[run.name for run in runs],
        grid=grid(runs, count),
        num_prompts=len(runs[0].prompts),
        facts=facts,
    )
    folder.mkdir(parents=True, exist_ok=True)
    table = markdown(rows)
    write_json(folder / "comparison.json", {"runs": rows, **facts})
    write_aside(folder / "comparison.md", table.encode())
    write_aside(folder / "comparison.html", page.encode())
    return table

"""The table of figures of several runs: its columns, formatting, and the best value of each column."""

from dataclasses import dataclass
from typing import Any

from evaluation.errors import EvaluationError
from evaluation.runs.run import Run, format_size
from training.markdown import escape_markdown, markdown_table


@dataclass(frozen=True)
class Column:
    """One figure.

    Attributes:
        name: heading without the arrow.
        style: format specification of the value.
        better: `lower` or `higher`; None for diversity, which should be close to that of real data.
        is_share: whether the value is a fraction in [0, 1].
        is_plotted: whether it is plotted against speed.
    """

    name: str
    style: str
    better: str | None
    is_share: bool = False
    is_plotted: bool = False

    @property
    def heading(self) -> str:
        """Name with an arrow in the direction of better values."""
        return self.name + {"lower": " ↓", "higher": " ↑", None: ""}[self.better]


COLUMNS = {
    "fid": Column("FID", ".2f", "lower", is_plotted=True),
    "fd_dinov2": Column("FD DINOv2", ".1f", "lower", is_plotted=True),
    "fd_evaluator": Column("FD evaluator", ".2f", "lower", is_plotted=True),
    "clip_score": Column("CLIP score", ".3f", "higher", is_plotted=True),
    "alignment": Column("right class", ".1%", "higher", is_share=True, is_plotted=True),
    "elo": Column("ELO", ".0f", "higher", is_plotted=True),
    "precision": Column("precision", ".3f", "higher", is_share=True),
    "recall": Column("recall", ".3f", "higher", is_share=True),
    "density": Column("density", ".3f", "higher"),
    "coverage": Column("coverage", ".3f", "higher", is_share=True),
    "diversity": Column("diversity", ".2f", None),
    "seconds_per_image": Column("s / image", ".4g", "lower"),
    "peak_memory_gib": Column("GiB", ".2f", "lower"),
}
# These depend on the machine and not on the images, and may be measured on different machines.
_OF_THE_MACHINE = ("seconds_per_image", "peak_memory_gib")
RunRow = dict[str, Any]  # name, steps, guidance, drawn_size, saved_size, figures


@dataclass(frozen=True)
class Cell:
    """A printed value, and whether it is the best of its column."""

    text: str
    is_best: bool = False


def collect_rows(runs: list[Run], elo: dict[str, Any] | None) -> list[RunRow]:
    """Make one row per run: its name, arguments, sizes and figures (`{name: {"value": ..., ...}}`).

    Args:
        runs: runs to compare.
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
        rows.append(
            {
                "name": run.name,
                "steps": call.get("num_inference_steps"),
                "guidance": call.get("guidance_scale"),
                "drawn_size": run.drawn_size,
                "saved_size": run.saved_size,
                "figures": figures,
            }
        )
    _require_same_measure(rows)
    return rows


def _require_same_measure(rows: list[RunRow]) -> None:
    """Refuse figures with different numbers of images or different networks, because biased figures depend on both."""
    for key in COLUMNS:
        conditions = {
            tuple(str(row["figures"][key].get(part)) for part in ("definition", "n", "n_reference", "reference"))
            for row in rows
            if key in row["figures"] and key not in _OF_THE_MACHINE
        }
        if len(conditions) > 1:
            raise EvaluationError(
                f"{key} was measured in different ways: {sorted(conditions)}. Measure the runs together."
            )


def present_columns(rows: list[RunRow]) -> list[str]:
    """Keys of the figures that any run has, in the order of `COLUMNS`."""
    return [key for key in COLUMNS if any(key in row["figures"] for row in rows)]


def table_cells(rows: list[RunRow]) -> tuple[list[str], list[list[Cell]]]:
    """Headings and cells of the table. Sizes are only shown if they differ between the runs."""
    keys, sizes = present_columns(rows), _different_sizes(rows)
    head = ["run", "steps", "guidance", *sizes.values(), *(COLUMNS[key].heading for key in keys)]
    best = {key: _best_text(rows, key) for key in keys}
    body = []
    for row in rows:
        plain = [row["name"], _print_setting(row["steps"]), _print_setting(row["guidance"])]
        plain += [format_size(row[size]) for size in sizes]
        printed = [_print_figure(row, key) for key in keys]
        figures = [Cell(text, text == best[key]) for key, text in zip(keys, printed)]
        body.append([*map(Cell, plain), *figures])
    return head, body


def _different_sizes(rows: list[RunRow]) -> dict[str, str]:
    names = {"drawn_size": "drawn at", "saved_size": "saved at"}
    return {key: name for key, name in names.items() if len({row[key] for row in rows}) > 1}


def _best_text(rows: list[RunRow], key: str) -> str | None:
    """The best value as printed, so that equal printed values are all marked; None if there is no best value."""
    found = [row for row in rows if key in row["figures"]]
    if len(found) < 2 or COLUMNS[key].better is None:
        return None
    choose = min if COLUMNS[key].better == "lower" else max
    best = _print_figure(choose(found, key=lambda row: row["figures"][key]["value"]), key)
    return None if all(_print_figure(row, key) == best for row in found) else best


def _print_figure(row: RunRow, key: str) -> str:
    figure = row["figures"].get(key)
    return format(figure["value"], COLUMNS[key].style) if figure else "-"


def _print_setting(value: Any) -> str:
    return "-" if value is None else f"{value:g}"


def comparison_markdown(rows: list[RunRow]) -> str:
    """The table as Markdown, with the best value of each column in bold."""
    head, body = table_cells(rows)
    lines = [
        [f"**{escape_markdown(c.text)}**" if c.is_best else escape_markdown(c.text) for c in line] for line in body
    ]
    return markdown_table(head, lines)


def card_figures(rows: list[RunRow]) -> list[dict[str, Any]]:
    """Make one flat row per run, in the form that `python -m training.publish --measured` reads."""
    keys, sizes = present_columns(rows), _different_sizes(rows)
    figures = []
    for row in rows:
        settings = {"run": row["name"], "steps": row["steps"], "guidance": row["guidance"]}
        settings |= {name: format_size(row[size]) for size, name in sizes.items()}
        printed = {COLUMNS[key].name: _print_figure(row, key) for key in keys if key in row["figures"]}
        known = {name: value for name, value in settings.items() if value is not None}
        figures.append(known | {name: text if text.endswith("%") else float(text) for name, text in printed.items()})
    return figures

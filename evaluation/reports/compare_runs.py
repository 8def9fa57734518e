"""Writes the comparison of runs: a table, plots of quality against speed, and a grid of images for the same prompts."""

from pathlib import Path
from typing import Any

from evaluation.reports.figure_table import (
    COLUMNS,
    card_figures,
    collect_rows,
    comparison_markdown,
    present_columns,
    table_cells,
)
from evaluation.reports.page import as_data_uri, render_page
from evaluation.reports.quality_plot import draw_quality_plots
from evaluation.runs.files import write_atomically, write_json
from evaluation.runs.run import Run

PAGE, TABLE, DATA = "comparison.html", "comparison.md", "comparison.json"


def choose_images(runs: list[Run], count: int) -> list[dict[str, Any]]:
    """`count` evenly spaced prompts, each with the images of all runs for the same seed as data URIs."""
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
    """Write `comparison.md`, `.json` and `.html` to `folder`.

    `comparison.json` contains the figures twice: `runs` has all details of each figure, and `command` and `figures` (in
    flat rows) are the input of `python -m training.publish --measured`.

    Args:
        runs: complete runs over the same prompts and seeds.
        folder: output folder, created if necessary.
        elo: see `collect_rows`.
        count: number of prompts in the grid of images.
        facts: `command` and `environment`, which are stored with the figures.

    Returns:
        The Markdown table.
    """
    rows = collect_rows(runs, elo)
    head, body = table_cells(rows)
    definitions = {
        COLUMNS[key].heading: next(row["figures"][key]["definition"] for row in rows if key in row["figures"])
        for key in present_columns(rows)
    }
    page = render_page(
        "reports/templates/comparison.html",
        head=head,
        body=body,
        definitions=definitions,
        plots=draw_quality_plots(rows),
        names=[run.name for run in runs],
        grid=choose_images(runs, count),
        num_prompts=len(runs[0].prompts),
        facts=facts,
    )
    folder.mkdir(parents=True, exist_ok=True)
    table = comparison_markdown(rows)
    write_json(folder / DATA, {**facts, "figures": card_figures(rows), "runs": rows})
    write_atomically(folder / TABLE, table.encode())
    write_atomically(folder / PAGE, page.encode())
    return table

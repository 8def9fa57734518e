"""The comparison: figures as measured, refused where they do not compare, one page with nothing outside it."""

import base64
import html
import io
import json
import re

import pytest
from PIL import Image

from evaluation.errors import EvaluationError
from evaluation.reports.compare_runs import choose_images, write_comparison
from evaluation.reports.figure_table import card_figures, collect_rows, comparison_markdown
from evaluation.reports.page import SHOWN, as_data_uri
from evaluation.reports.quality_plot import draw_quality_plots
from evaluation.runs.files import write_json
from tests.evaluation.run_folders import PROMPTS, make_run

FACTS = {"command": "python -m evaluation compare", "environment": {"torch": "2"}}


def measured_run(folder, brightness, fid, seconds=None, **kwargs):
    run = make_run(folder, brightness, **kwargs)
    figure = {"value": fid, "definition": "distance", "n": 8, "n_reference": 30, "reference": "val"}
    write_json(run.folder / "metrics.json", {"figures": {"fid": figure}})
    if seconds:
        write_json(run.folder / "speed.json", {"figures": {"seconds_per_image": {"value": seconds, "definition": "s"}}})
    return run


@pytest.fixture
def runs(tmp_path):
    call = {"num_inference_steps": 25, "guidance_scale": 7.5}
    return [
        measured_run(tmp_path / "slow", 60, 20.1, 0.88, call=call),
        measured_run(tmp_path / "fast", 190, 19.7, 0.09),
    ]


def test_table_has_what_the_runs_have(runs):
    """Paper's Table 2 in small; ELO from a study joins in, and what is not known is a dash."""
    elo = {"definition": "elo", "elo": {"fast": {"mean": 1010.4}}}
    lines = comparison_markdown(collect_rows(runs, elo)).splitlines()
    assert lines[0] == "| run | steps | guidance | FID ↓ | ELO ↑ | s / image ↓ |"
    assert lines[2:] == ["| slow | 25 | 7.5 | 20.10 | - | 0.88 |", "| fast | - | - | **19.70** | 1010 | **0.09** |"]


@pytest.mark.parametrize("change", [{"n": 7}, {"n_reference": 29}, {"reference": "train"}, {"definition": "other"}])
def test_figures_measured_differently_are_refused(runs, change):
    measured = runs[1].read("metrics.json")
    measured["figures"]["fid"] |= change
    write_json(runs[1].folder / "metrics.json", measured)
    with pytest.raises(EvaluationError, match="fid was measured in different ways"):
        collect_rows(runs, None)


def test_plots_need_speed_and_quality(runs, tmp_path):
    (svg,) = draw_quality_plots(collect_rows(runs, None)).values()
    assert svg.startswith("<svg")
    assert all(text in svg for text in ("slow", "fast", "FID", "seconds per image"))
    assert draw_quality_plots(collect_rows([measured_run(tmp_path / "untimed", 90, 3.0)], None)) == {}


@pytest.mark.parametrize("name", ["$x^{$", "a_b $\\alpha$", "<b>&"])
def test_names_are_plain_text_in_plot_and_table(tmp_path, name):
    """Neither mathematics of matplotlib, nor Markdown, nor HTML."""
    runs = [measured_run(tmp_path / "a", 60, 2.0, 0.5, name=name), measured_run(tmp_path / "b", 90, 3.0, 0.1)]
    rows = collect_rows(runs, None)
    (svg,) = draw_quality_plots(rows).values()
    assert f">{html.escape(name, quote=False)}</text>" in svg
    cell = comparison_markdown(rows).splitlines()[2].split(" | ")[0].removeprefix("| ")
    assert html.unescape(cell.replace("\\\\", "\0").replace("\\", "").replace("\0", "\\")) == name
    assert "<" not in cell
    assert not re.search(r"(?<!\\)\$", cell)


def shares(svg: str) -> list[float]:
    """The labels of an axis in percent."""
    return [float(text) for text in re.findall(r">([\d.]+)%</text>", svg)]


def test_axes_follow_the_data(tmp_path):
    """Shares end at 100 %; seconds that hardly differ are on a linear axis from 0, others on a logarithmic one."""
    runs = [measured_run(tmp_path / name, 60, 2.0, seconds) for name, seconds in (("a", 0.5), ("b", 0.6), ("c", 9.0))]
    rows = collect_rows(runs, None)
    for row, share in zip(rows, (0.99, 1.0, 0.97)):
        row["figures"]["alignment"] = {"value": share, "definition": "d"}
    svg = draw_quality_plots(rows)["right class ↑"]
    assert max(shares(svg)) == 100
    assert min(shares(svg)) >= 90
    linear = draw_quality_plots(rows[:2])["FID ↓"]
    assert ">0</text>" in linear
    assert ">0</text>" not in draw_quality_plots(rows)["FID ↓"].split("seconds per image")[0]


def test_the_best_of_every_column_is_marked(tmp_path):
    """Lower distance, higher score; equal when printed is equally good; alone or all alike is no best."""
    runs = [measured_run(tmp_path / name, 60, fid) for name, fid in (("a", 2.001), ("b", 2.004), ("c", 3.0))]
    rows = collect_rows(runs, {"definition": "elo", "elo": {"a": {"mean": 1000}, "b": {"mean": 1010}}})
    rows[0]["figures"]["precision"] = {"value": 0.5, "definition": "p"}
    for row in rows:
        row["figures"]["recall"] = {"value": 0.25, "definition": "r"}
    assert comparison_markdown(rows).splitlines()[2:] == [
        "| a | - | - | **2.00** | 1000 | 0.500 | 0.250 |",
        "| b | - | - | **2.00** | **1010** | - | 0.250 |",
        "| c | - | - | 3.00 | - | - | 0.250 |",
    ]


def test_sizes_are_shown_where_they_differ(tmp_path):
    """Drawn at different sizes and reduced to one: allowed, as in the paper, but not in silence."""
    runs = [measured_run(tmp_path / name, 60, 2.0) for name in "ab"]
    assert "drawn at" not in comparison_markdown(collect_rows(runs, None))
    runs[0].record_drawn_size((64, 64))
    runs[1].record_drawn_size((32, 32))
    lines = comparison_markdown(collect_rows(runs, None)).splitlines()
    assert lines[0] == "| run | steps | guidance | drawn at | FID ↓ |"
    assert lines[2] == "| a | - | - | 64x64 | 2.00 |"


def test_a_model_card_takes_the_figures(runs, tmp_path):
    """What `publish --measured` reads: a command, and flat rows of numbers."""
    write_comparison(runs, tmp_path / "out", None, 1, FACTS)
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["command"] == FACTS["command"]
    assert content["figures"] == [
        {"run": "slow", "steps": 25, "guidance": 7.5, "FID": 20.1, "s / image": 0.88},
        {"run": "fast", "FID": 19.7, "s / image": 0.09},
    ]
    assert card_figures(collect_rows(runs, None)) == content["figures"]


def test_grid_shows_the_same_prompts_and_seeds(runs):
    """Spread over the list; small images are the run's own, pixel for pixel."""
    lines = choose_images(runs, 3)
    assert [line["prompt"] for line in lines] == [PROMPTS[0], PROMPTS[2], PROMPTS[5]]
    assert [line["seed"] for line in lines] == [5, 7, 10]
    shown = Image.open(io.BytesIO(base64.b64decode(lines[1]["images"][1].split(",")[1])))
    assert shown.tobytes() == runs[1].load(runs[1].shots[2]).tobytes()
    assert len(choose_images(runs, 99)) == len(PROMPTS)


def test_large_images_are_reduced():
    uri = as_data_uri(Image.new("RGB", (1024, 512), "red"))
    assert uri.startswith("data:image/jpeg")
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (SHOWN, SHOWN // 2)


def test_the_page_is_whole_and_escapes(tmp_path):
    """Names and prompts are anybody's text; nothing is loaded from elsewhere, no script runs."""
    prompts = ["<script>alert(1)</script>", *PROMPTS]
    runs = [
        measured_run(tmp_path / "a", 60, 2.0, 0.5, prompts=prompts),
        measured_run(tmp_path / "b", 90, 3.0, 0.1, prompts=prompts, name="b<img src=x>"),
    ]
    table = write_comparison(runs, tmp_path / "out", None, 9, FACTS)
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<img src=x>" not in page
    assert len(re.findall(r"<img src=\"data:image/png", page)) == 18
    assert not re.search(r"(src|href)=\"(?!data:|#)", page.replace('xlink:href="#', 'href="#'))
    assert (tmp_path / "out" / "comparison.md").read_text() == table
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["runs"][0]["figures"]["fid"]["value"] == 2.0

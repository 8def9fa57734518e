"""The comparison: figures as measured, refused where they do not compare, one page with nothing outside it."""

import base64
import io
import json
import re

import pytest
from PIL import Image

from evaluation.reports.compare_runs import collect, grid, markdown, plot, write_comparison
from evaluation.errors import EvaluationError
from evaluation.reports.page import SHOWN, as_data_uri
from evaluation.runs.run import write_json
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
    lines = markdown(collect(runs, elo)).splitlines()
    assert lines[0] == "| run | steps | guidance | FID ↓ | ELO ↑ | s / image ↓ |"
    assert lines[2:] == ["| slow | 25 | 7.5 | 20.10 | - | 0.88 |", "| fast | - | - | 19.70 | 1010 | 0.09 |"]


@pytest.mark.parametrize("change", [{"n": 7}, {"n_reference": 29}, {"reference": "train"}, {"definition": "other"}])
def test_figures_measured_differently_are_refused(runs, change):
    measured = runs[1].read("metrics.json")
    measured["figures"]["fid"] |= change
    write_json(runs[1].folder / "metrics.json", measured)
    with pytest.raises(EvaluationError, match="fid was measured in different ways"):
        collect(runs, None)


def test_plot_needs_speed_and_quality(runs, tmp_path):
    rows = collect(runs, None)
    svg = plot(rows)
    assert svg.startswith("<svg")
    assert all(text in svg for text in ("slow", "fast", "FID", "seconds per image"))
    assert plot(collect([measured_run(tmp_path / "untimed", 90, 3.0)], None)) is None


def test_grid_shows_the_same_prompts_and_seeds(runs):
    """Spread over the list; small images are the run's own, pixel for pixel."""
    lines = grid(runs, 3)
    assert [line["prompt"] for line in lines] == [PROMPTS[0], PROMPTS[2], PROMPTS[5]]
    assert [line["seed"] for line in lines] == [5, 7, 10]
    shown = Image.open(io.BytesIO(base64.b64decode(lines[1]["images"][1].split(",")[1])))
    assert shown.tobytes() == runs[1].load(runs[1].shots[2]).tobytes()
    assert len(grid(runs, 99)) == len(PROMPTS)


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

"""The measuring half, on the tiny world: the same code times real iterations of the real loop."""

import json
import types

import pytest
import torch

from benchmarks import full_size, measure, runs
from benchmarks.architectures import RECIPES
from tests.support.runs import parse
from training.models.families import StableDiffusion
from training.options.refusals import refuse


@pytest.mark.parametrize("extra", [(), ("--use_lora", "--lora_rank", 2, "--mixed_precision", "bf16")])
def test_iterations_of_the_real_loop_are_timed(world, tmp_path, extra):
    options = parse(world, tmp_path / "out", *extra)
    speed = measure.time_iterations(options, StableDiffusion, iterations=2, warmup=1)
    assert speed.milliseconds > 0
    assert speed.images_per_second == pytest.approx(4 / (speed.milliseconds / 1e3))
    assert 0.1 < speed.peak_gib < 100  # of the process


def test_matrix_rate_and_machine():
    assert measure.matrix_rate(torch.device("cpu"), torch.float32, side=64, seconds=0.01) > 0
    assert measure.machine(torch.device("cpu"))["device"]
    assert measure.machine(torch.device("cpu"))["torch"] == torch.__version__


def test_every_run_of_the_table_is_a_command_line_the_training_script_takes(tmp_path):
    (tmp_path / "data").mkdir()
    for run in runs.RUNS:
        options = full_size.training_options(run.model, run.recipe, run.resolution, run.batch, tmp_path, run.flags)
        refuse(options)
        assert options.optimization.train_batch_size == run.batch
        assert options.hardware.mixed_precision == "bf16"
    assert {(run.model, run.recipe) for run in runs.RUNS} >= {(m, r) for m in ("sd15", "sdxl") for r in RECIPES}


def test_run_writes_every_figure(world, tmp_path, monkeypatch, capsys):
    """With the tiny world in the full one's place: a small UNet, the same path from command line to JSON."""
    import shutil

    folder = tmp_path / "sd15" / "32"
    shutil.copytree(world, folder)
    shutil.copytree(world / "clip", folder / "text_condition")
    shutil.copytree(world / "feature_network", folder / "image_condition")
    (folder / "complete").touch()
    monkeypatch.setattr("benchmarks.measure.matrix_rate", lambda *a: 2.0)
    full_size.main(["run", "--model", "sd15", "--recipe", "B", "--resolution", "32", "--iterations", "1", "--warmup",
                    "1", "--world", str(tmp_path), "--r1_gamma", "0", "--use_8bit_adam"])  # fmt: skip
    row = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert runs.Run("sd15", 32, "B", 1, ("--r1_gamma", "0", "--use_8bit_adam")).is_of(row)
    assert row["share_of_matrix_rate"] == pytest.approx(row["tflop_per_image"] * row["images_per_second"] / 2.0)
    assert row["peak_gib"] > 0.1
    assert row["peak_counted_gib"] > 5  # of the full one
    assert (folder / "cache-32" / "fingerprint.json").is_file()


@pytest.mark.skipif(not measure.PROCESS.exists(), reason="the process's peak can be set back on Linux alone")
def test_peak_forgets_what_was_before():
    """Of the process, on a CPU."""
    cpu = torch.device("cpu")
    big = torch.ones(100 * 2**20)  # 400 MiB
    before = measure._peak_bytes(cpu)
    del big
    measure._reset_peak(cpu)
    assert measure._peak_bytes(cpu) < before - 300 * 2**20
    again = torch.ones(100 * 2**20)
    assert measure._peak_bytes(cpu) > before - 100 * 2**20
    del again


@pytest.fixture
def stand_in(monkeypatch):
    """In `subprocess.run`'s place: figures by recipe, and what was run. `fails` ends the first run of a recipe."""
    seen, fails = [], set()

    def run(command, **_):
        options = dict(zip(command[4::2], command[5::2]))
        seen.append(options["--recipe"])
        if options["--recipe"] in fails:
            fails.remove(options["--recipe"])
            return types.SimpleNamespace(returncode=1, stdout="")
        more = command[command.index("--world") + 2 :]
        row = {
            "model": options["--model"], "resolution": int(options["--resolution"]), "recipe": options["--recipe"],
            "batch": int(options["--batch"]), "flags": " ".join(more), "milliseconds": 10.0, "peak_gib": 12.0,
            "images_per_second": {"A": 1.0, "C": 1.7}.get(options["--recipe"], 1.0), "share_of_matrix_rate": 0.3,
            "device": "Some card",
        }  # fmt: skip
        return types.SimpleNamespace(returncode=0, stdout=f"noise\n{json.dumps(row)}\n")

    monkeypatch.setattr(runs.subprocess, "run", run)
    return seen, fails


def test_all_goes_on_with_what_is_missing_or_failed(tmp_path, stand_in, monkeypatch, capsys):
    seen, fails = stand_in
    fails.add("D")
    monkeypatch.setattr(measure, "machine", lambda _: {"device": "NVIDIA H200 (1)"})
    command = ["all", "--results", str(tmp_path)]
    full_size.main(command)
    assert len(seen) == len(runs.RUNS)
    file = tmp_path / "nvidia-h200-1.json"
    assert sum("failed" in row for row in json.loads(file.read_text())) == 1
    seen.clear()
    capsys.readouterr()
    full_size.main(command)
    assert seen == ["D"]
    rows = json.loads(file.read_text())
    assert len(rows) == len(runs.RUNS)
    assert not any("failed" in row for row in rows)
    lines = capsys.readouterr().out
    assert "all weights, batch 1: GiB: under 40: 12.00, met" in lines
    assert "SDXL, speed of recipe C over A: at least 1.6: 1.70, met" in lines
    assert "SD 1.5, speed of recipe C over A: at least 2: 1.70, MISSED" in lines
    assert "best run: at least 0.4: 0.30, MISSED" in lines


def test_what_was_not_measured_is_said(capsys):
    assert [aim.verdict([]).endswith("not measured") for aim in runs.AIMS] == [True] * 5


def test_two_recipes_are_compared_turn_by_turn(tmp_path, stand_in, capsys):
    seen, fails = stand_in
    command = ["compare", "--model", "sd15", "--recipes", "A", "C", "--rounds", "3", "--results", str(tmp_path)]
    full_size.main([*command, "--use_8bit_adam"])
    assert seen == ["A", "C", "C", "A", "A", "C"]
    assert "C is 1.70 times as fast as A" in capsys.readouterr().out
    full_size.main([*command, "--use_lora"])
    first, second = json.loads((tmp_path / "some-card-comparisons.json").read_text())
    assert first["speed"] == pytest.approx(1.7)
    assert len(first["ratios"]) == 3
    assert {row["flags"] for row in first["rows"]} == {"--use_8bit_adam"}
    assert {row["flags"] for row in second["rows"]} == {"--use_lora"}
    fails.add("C")
    with pytest.raises(RuntimeError, match=r"Run\(model='sd15'.*recipe='C'.*failed"):
        full_size.main(command)

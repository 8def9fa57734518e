"""The measuring half, on the tiny world: the same code times real iterations of the real loop."""

import json

import pytest
import torch

from benchmarks import full_size, measure
from tests import tiny_world
from training.arguments import make_parser
from training.families import StableDiffusion


@pytest.mark.parametrize("extra", [(), ("--use_lora", "--lora_rank", 2, "--mixed_precision", "bf16")])
def test_iterations_of_the_real_loop_are_timed(world, tmp_path, extra):
    args = make_parser("test").parse_args(tiny_world.flags(world, tmp_path / "out", *extra))
    speed = measure.time_iterations(args, StableDiffusion, iterations=2, warmup=1)
    assert speed.milliseconds > 0
    assert speed.images_per_second == pytest.approx(4 / (speed.milliseconds / 1e3))
    assert 0.1 < speed.peak_gib < 100  # of the process


def test_matrix_rate_and_machine():
    assert measure.matrix_rate(torch.device("cpu"), torch.float32, side=64, seconds=0.01) > 0
    assert measure.machine(torch.device("cpu"))["device"]
    assert measure.machine(torch.device("cpu"))["torch"] == torch.__version__


def test_every_run_of_the_table_is_a_command_line_the_training_script_takes(tmp_path):
    from training.checks import check_arguments

    (tmp_path / "data").mkdir()
    for model, resolution, recipe, batch, more in full_size.RUNS:
        args = full_size.training_args(model, recipe, resolution, batch, tmp_path, more)
        check_arguments(args)
        assert args.train_batch_size == batch
        assert args.mixed_precision == "bf16"
    assert {(row[0], row[2]) for row in full_size.RUNS} >= {(m, r) for m in ("sd15", "sdxl") for r in full_size.RECIPES}


def test_run_writes_every_figure(world, tmp_path, monkeypatch, capsys):
    """With the tiny world in the full one's place: a small UNet, the same path from command line to JSON."""
    import shutil

    folder = tmp_path / "sd15" / "32"
    shutil.copytree(world, folder)
    shutil.copytree(world / "clip", folder / "text_condition")
    shutil.copytree(world / "feature_network", folder / "image_condition")
    (folder / "complete").touch()
    monkeypatch.setattr("benchmarks.measure.matrix_rate", lambda *a: 2.0)
    full_size.main(["run", "--model", "sd15", "--recipe", "B", "--resolution", "32", "--iterations", "1", "--world",
                    str(tmp_path), "--r1_gamma", "0", "--use_8bit_adam"])  # fmt: skip
    row = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert row["flags"] == "--r1_gamma 0 --use_8bit_adam"
    assert row["share_of_matrix_rate"] == pytest.approx(row["tflop_per_image"] * row["images_per_second"] / 2.0)
    full_size.save(tmp_path / "results", [row])
    [file] = (tmp_path / "results").iterdir()
    assert json.loads(file.read_text()) == [row]
    assert (folder / "cache-32" / "fingerprint.json").is_file()

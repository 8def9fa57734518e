"""The commands as a user types them, from prompts to the page."""

import json
import subprocess
import sys

import pytest
from transformers import BitImageProcessor

from evaluation.__main__ import main
from evaluation.errors import INSTALL_EXTRAS, EvaluationError
from evaluation.preference.__main__ import main as preference_main
from examples.tiny.models import make_classifier
from tests.evaluation.commands import exit_status
from tests.evaluation.run_folders import PROMPTS, make_run


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluator")
    make_classifier(["one", "two", "three", "seven"], width=32, layers=2).save_pretrained(folder)
    BitImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return folder


def generate_command(world, folder, *extra):
    prompts = world / "data" / "metadata.jsonl"
    words = ["generate", "--model", world / "teacher", "--prompts", prompts, "--num_prompts", 8,
             "--output_dir", folder, "--timing_repeats", 1, *extra]  # fmt: skip
    return [str(word) for word in words]


def test_from_prompts_to_the_page(tmp_path, world, evaluator, capsys):
    """Two runs of one model by different steps: drawn, measured by the stand-in, compared with a judge's ELO."""
    runs = [str(tmp_path / "one-step"), str(tmp_path / "two-steps")]
    for steps, run in enumerate(runs, start=1):
        command = generate_command(world, run, "--num_inference_steps", steps, "--images_per_prompt", 2)
        assert exit_status(main, command) == 0
    assert exit_status(main, command) == 0  # again: nothing to do
    assert "all 16 images exist" in capsys.readouterr().out
    assert exit_status(main, ["measure", *runs, "--reference", str(world / "data"), "--evaluator", str(evaluator)]) == 0
    study, elo = str(tmp_path / "study.sqlite"), str(tmp_path / "elo.json")
    assert exit_status(preference_main, ["judge", *runs, "--study", study, "--model", str(world / "clip")]) == 0
    assert (
        exit_status(preference_main, ["judge", *runs, "--study", study, "--model", str(world / "clip")]) == 0
    )  # votes once only
    assert exit_status(preference_main, ["elo", "--study", study, "--voters", "judges", "--output", elo]) == 0
    assert exit_status(main, ["compare", *runs, "--output_dir", str(tmp_path / "out"), "--elo", elo]) == 0
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())["runs"]
    wanted = {"fd_evaluator", "alignment", "precision", "recall", "density", "coverage", "diversity", "elo",
              "seconds_per_image", "peak_memory_gib"}  # fmt: skip
    assert [(row["name"], row["steps"], set(row["figures"])) for row in rows] == [
        ("one-step", 1, wanted), ("two-steps", 2, wanted)
    ]  # fmt: skip
    metrics = json.loads((tmp_path / "one-step" / "metrics.json").read_text())
    distance = metrics["figures"]["fd_evaluator"]
    assert distance["command"].startswith("python -m evaluation measure")
    assert distance["environment"]["torch"]
    assert (distance["n"], distance["n_reference"], distance["reference"]) == (8, 24, str(world / "data"))
    ratings = [row["figures"]["elo"]["value"] for row in rows]
    assert sum(ratings) == pytest.approx(2000)
    questions = json.loads((tmp_path / "elo.json").read_text())["questions"]
    assert questions["quality"]["votes"] == questions["adherence"]["votes"] == 8
    assert questions["quality"]["wins"][0]["votes"] == 8


def test_figures_measured_one_after_another_stay(tmp_path, world):
    """CLIP score today, distances tomorrow: each keeps its own command. Real images come from a data set here."""
    run = make_run(tmp_path / "run", 90).folder
    data = ["--dataset_name", world / "data", "--dataset_split", "train", "--reference_cache", tmp_path / "cache"]
    for words in (
        ["--metrics", "clip_score", "--clip_model", world / "clip"],
        ["--metrics", "fd_dinov2", "--dino_model", world / "feature_network", *data],
        ["--metrics", "fd_dinov2", "--dino_model", world / "feature_network", *data, "--num_reference", 12],
    ):
        assert exit_status(main, ["measure", str(run), *map(str, words)]) == 0
    figures = json.loads((run / "metrics.json").read_text())["figures"]
    assert set(figures) == {"clip_score", "fd_dinov2"}
    assert "clip_score" in figures["clip_score"]["command"]
    assert figures["fd_dinov2"]["n_reference"] == 12
    assert len(list((tmp_path / "cache").rglob("*.png"))) == 24


def test_module_runs_and_errors_have_no_traceback(tmp_path):
    command = [sys.executable, "-m", "evaluation", "measure", str(tmp_path), "--reference", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "is not a run" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "--model", "a/b", "--output_dir", "x"], "--prompts FILE or --dataset_name"),
        (
            ["generate", "--model", "a/b", "--output_dir", "x", "--prompts", "p.txt", "--dataset_name", "d"],
            "either",
        ),
        (["generate", "--model", "a/b", "--output_dir", "x", "--prompts", "absent.txt"], "absent.txt: No such file"),
        (["generate", "--model", "/no", "--output_dir", "x", "--prompts", "absent.txt"], "--model /no"),
        (
            ["generate", "--model", "no/such-repo", "--output_dir", "{empty}", "--prompts", "{run}/p.txt"],
            "--model no/such-repo",
        ),
        (["measure", "{run}"], "--reference FOLDER or --dataset_name"),
        (["measure", "{run}", "--reference", "{empty}"], "there are 0 images"),
        (["measure", "{run}", "--reference", "nowhere"], "--reference nowhere: there is no such folder"),
        (["measure", "{run}", "--metrics", "clip_score", "--clip_model", "{empty}"], "--clip_model"),
        (["compare", "{run}", "--output_dir", "x"], "at least two runs"),
    ],
)
def test_errors_name_the_flag_and_the_fix(tmp_path, capsys, words, message):
    run, empty = make_run(tmp_path / "run", 90).folder, tmp_path / "empty"
    empty.mkdir()
    (run / "p.txt").write_text("a cat")
    assert exit_status(main, [word.format(run=run, empty=empty) for word in words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--scheduler_args", "[1]"], ["--call_args", "{"], ["--batch_size", "0"], ["--torch_dtype", "int8"]]
)
def test_flags_that_cannot_be_parsed_are_one_line(tmp_path, world, capsys, flags):
    assert exit_status(main, generate_command(world, tmp_path / "r", *flags)) == 2
    error = capsys.readouterr().err
    assert flags[0] in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "{a}", "--study", "{dir}/s"], "at least two runs"),
        (["serve", "{a}", "{b}", "--study", "{dir}/s", "--num_prompts", "9"], "--num_prompts 9: the runs have 8"),
        (["serve", "{a}", "{b}", "--study", "{dir}/s", "--check_share", "1"], "give a number below 1"),
        (["serve", "{a}", "{b}", "--study", "{dir}/s", "--port", "1", "--host", "192.0.2.1"], "--host 192.0.2.1"),
        (["elo", "--study", "{dir}/absent"], "no such file"),
    ],
)
def test_preference_errors_name_the_flag(tmp_path, capsys, words, message):
    a, b = (make_run(tmp_path / name, 90).folder for name in "ab")
    assert exit_status(preference_main, [word.format(a=a, b=b, dir=tmp_path) for word in words]) == 2
    assert message in capsys.readouterr().err


def test_elo_of_a_study_without_votes_of_people(tmp_path, world, capsys):
    runs = [str(make_run(tmp_path / name, brightness).folder) for name, brightness in (("a", 60), ("b", 190))]
    study = ["--study", str(tmp_path / "s.sqlite")]
    assert (
        exit_status(preference_main, ["judge", *runs, *study, "--model", str(world / "clip"), "--num_prompts", "3"])
        == 0
    )
    assert exit_status(preference_main, ["elo", *study]) == 2
    assert "--voters judges" in capsys.readouterr().err
    assert len(PROMPTS) > 3


@pytest.mark.parametrize("words", [["--debug", "compare", "a"], ["compare", "a", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_is_given(words):
    with pytest.raises(EvaluationError, match="at least two runs"):
        main([*words, "--output_dir", "x"])


@pytest.mark.parametrize(
    ("package", "command", "words"),
    [
        ("matplotlib", main, ["compare", "{a}", "{b}", "--output_dir", "{dir}/out"]),
        ("torchmetrics", main, ["measure", "{a}", "--reference", "{a}"]),
        ("prdc", main, ["measure", "{a}", "--reference", "{a}"]),
        ("starlette", preference_main, ["serve", "{a}", "{b}", "--study", "{dir}/s"]),
        ("scipy", preference_main, ["elo", "--study", "{dir}/s"]),
    ],
)
def test_a_missing_package_is_one_line_that_says_how_to_install_it(
    tmp_path, monkeypatch, capsys, package, command, words
):
    a, b = (make_run(tmp_path / name, 90).folder for name in "ab")
    monkeypatch.setitem(sys.modules, package, None)
    assert exit_status(command, [word.format(a=a, b=b, dir=tmp_path) for word in words]) == 2
    error = capsys.readouterr().err
    assert f"needs {package}" in error
    assert INSTALL_EXTRAS in error
    assert error.count("\n") == 1


ABSENT = """
import runpy, sys
for name in ("torchmetrics", "scipy", "sklearn", "matplotlib", "prdc", "starlette", "uvicorn", "gradio"):
    sys.modules[name] = None
sys.argv = ["x", "--help"]
runpy.run_module("{module}", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "module",
    ["evaluation", "evaluation.preference", "evaluation.ablations", "evaluation.comparison", "examples.lcm",
     "examples.demo.report", "examples.live"],
)  # fmt: skip
def test_every_command_starts_without_the_extras(module):
    """So that it can say which of them it needs."""
    result = subprocess.run([sys.executable, "-c", ABSENT.format(module=module)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: python -m {module} ")


def test_judge_is_told_its_own_options(tmp_path, capsys):
    """Not those of `measure`."""
    runs = [str(make_run(tmp_path / name, 90).folder) for name in "ab"]
    words = ["judge", *runs, "--study", str(tmp_path / "s"), "--model", str(tmp_path)]
    assert exit_status(preference_main, words) == 2
    error = capsys.readouterr().err
    assert f"--model {tmp_path}: the folder cannot be loaded" in error
    assert "--processor" in error
    assert "--metrics" not in error


def test_compare_says_where_the_page_is_and_refuses_what_is_no_elo(tmp_path, capsys):
    runs = [str(make_run(tmp_path / name, 90).folder) for name in "ab"]
    assert exit_status(main, ["compare", *runs, "--output_dir", str(tmp_path / "out")]) == 0
    assert f"The page is {tmp_path / 'out/comparison.html'}." in capsys.readouterr().out
    (tmp_path / "elo.json").write_text("[]")
    words = ["compare", *runs, "--output_dir", str(tmp_path / "out"), "--elo", str(tmp_path / "elo.json")]
    assert exit_status(main, words) == 2
    assert "elo.json: cannot be read" in capsys.readouterr().err

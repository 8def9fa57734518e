"""Table 2 on the tiny world: what is compared with what, under which conditions, and what is said of it."""

import json
import shutil
from types import SimpleNamespace

import pytest
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, StableDiffusionPipeline

from evaluation.comparison import __main__ as comparison
from evaluation.comparison import table2
from evaluation.errors import EvaluationError
from evaluation.tiny import task as tiny_task
from evaluation.tiny.systems import SystemFigures
from examples.lcm import __main__ as lcm
from pipelines import student_scheduler
from tests.evaluation.commands import exit_status
from tests.evaluation.tiny_folder import make_tiny_dir


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory):
    """A tiny world and an "ADD student" that is its teacher with the student's scheduler."""
    folder = tmp_path_factory.mktemp("comparison")
    make_tiny_dir(world, folder / "tiny")
    student = StableDiffusionPipeline.from_pretrained(folder / "tiny/teacher")
    student.scheduler = student_scheduler(student.scheduler.config, "epsilon")
    student.save_pretrained(folder / "student")
    facts = {"iterations": 2, "effective batch": 4}
    (folder / "student/add_run.json").write_text(json.dumps({"facts": facts}))
    return folder


def flags(folders, *extra):
    paths = ["--tiny_dir", folders / "tiny", "--add_student", folders / "student", "--output_dir", folders / "out"]
    return [str(word) for word in (*paths, *extra)]


def resolved(folders, *extra):
    args = comparison.make_comparison_parser().parse_args(flags(folders, *extra))
    comparison.complete_arguments(args)
    return args


def row(name, steps, fd, guidance=0.0):
    return SystemFigures(name, steps, guidance, fd, 0.9, 2.0, 0.1)


def test_lcm_gets_what_the_student_got(folders):
    """Updates and batch are the student's own, unless the user says otherwise."""
    words = comparison.lcm_command(resolved(folders))
    assert (words[words.index("--updates") + 1], words[words.index("--batch_size") + 1]) == ("2", "4")
    words = comparison.lcm_command(resolved(folders, "--updates", 7))
    assert (words[words.index("--updates") + 1], words[words.index("--batch_size") + 1]) == ("7", "4")
    assert lcm.make_lcm_parser().parse_args(words[3:]).guidance_scale == 2.0


def test_claims_compare_one_step_with_the_best_of_the_others():
    """The solver counts with the guidance that suits it; a ratio above 1 is not met."""
    rows = [
        row("teacher, DPM-Solver++", 25, 2.0, 1.0), row("teacher, DPM-Solver++", 25, 9.0, 2.0),
        row("teacher, DPM-Solver++", 8, 8.0, 1.0), row("LCM", 1, 16.0), row("LCM", 4, 4.0), row("ADD", 1, 4.0),
        row("ADD", 4, 1.0),
    ]  # fmt: skip
    judged = [
        (claim["claim"].partition("than ")[2], claim["met"], claim["ratio"]) for claim in table2.check_claims(rows)
    ]
    assert judged == [
        ("LCM, 1 step", True, 0.25),
        ("LCM, 4 steps", False, 1.0),
        ("teacher, DPM-Solver++, 8 steps", True, 0.5),
        ("teacher, DPM-Solver++, 25 steps", False, 2.0),
    ]


def test_samplers_are_those_that_are_named(folders):
    paths = {"teacher": folders / "tiny/teacher", "add": folders / "student"}
    lines = {entry.name: entry for entry in table2.table_entries(2.0)}
    solver = table2.load_entry(lines["teacher, DPM-Solver++"], paths).scheduler
    assert isinstance(solver, DPMSolverMultistepScheduler)
    assert solver.config.algorithm_type == "dpmsolver++"
    released = table2.load_entry(lines["ADD, released sampler"], paths).scheduler
    assert isinstance(released, EulerAncestralDiscreteScheduler)
    released.set_timesteps(4)
    assert released.timesteps.tolist() == [999, 749, 499, 249]


def test_everybody_is_measured_alike(folders, monkeypatch, capsys):
    """The student that is its teacher draws in one step what the teacher's DDIM does, so its figures are the same."""
    monkeypatch.setattr(tiny_task, "NOISES", 2)
    monkeypatch.setattr(tiny_task, "CAPTIONS", 2)
    monkeypatch.setattr(tiny_task, "seconds_per_image", lambda *_, **__: 0.25)
    launched = []

    def run(words):
        launched.append(words[1:])
        return SimpleNamespace(returncode=exit_status(lcm.main, words[3:]))

    monkeypatch.setattr(comparison, "subprocess", SimpleNamespace(run=run))  # not that of the libraries
    assert exit_status(comparison.main, flags(folders, "--num_samples", 4, "--commands", "make demo")) == 0
    content = json.loads((folders / "out/comparison.json").read_text())
    assert (content["updates"], content["batch_size"], content["commands"][0]) == (2, 4, "make demo")
    lines = {(line["name"], line["steps"], line["guidance"]): line for line in content["systems"]}
    assert len(lines) == 2 * (2 + 5) + 9
    add, ddim = lines["ADD", 1, 0.0], lines["teacher, DDIM", 1, 1.0]
    assert add["fd"] == pytest.approx(ddim["fd"], rel=1e-3)
    assert lines["ADD, released sampler", 1, 0.0]["fd"] == pytest.approx(add["fd"], rel=0.05)
    assert len({round(line["fd"], 6) for line in content["systems"]}) > 18  # steps, guidance, sampler reach the images
    assert (add["paper"], lines["LCM", 1, 0.0]["paper"]) == ([19.7, 0.326, 0.09], None)
    page = (folders / "out/comparison.md").read_text()
    assert "| ADD | 1 | - | " in page
    assert "| 0.2500 | 19.7, 0.326, 0.09 |" in page
    assert all(claim["claim"] in page for claim in content["claims"])
    assert page in capsys.readouterr().out
    comparison.launch_lcm(comparison.lcm_command(resolved(folders)), folders / "out/lcm")
    assert len(launched) == 1  # kept
    with pytest.raises(EvaluationError, match="was made by `python"):
        comparison.launch_lcm(comparison.lcm_command(resolved(folders, "--updates", 3)), folders / "out/lcm")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--add_student", "nowhere"), "--add_student nowhere: no model_index.json there"),
        (("--tiny_dir", "nowhere"), "--tiny_dir nowhere: no data/train"),
        (("--guidance_scale", 1), "--guidance_scale 1.0: give a number above 1"),
        (("--num_samples", 1), "--num_samples 1"),
    ],
)
def test_refuses_what_cannot_be_compared(folders, extra, message, capsys):
    assert exit_status(comparison.main, flags(folders, *extra)) == 2
    assert message in capsys.readouterr().err


def test_a_student_of_unknown_training_needs_to_be_told(folders, tmp_path, capsys):
    shutil.copytree(folders / "student", tmp_path / "student")
    (tmp_path / "student/add_run.json").unlink()
    assert exit_status(comparison.main, flags(folders, "--add_student", tmp_path / "student")) == 2
    assert "--updates: " in capsys.readouterr().err

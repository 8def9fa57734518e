"""The demo's report: what is asked, what is compared, what is written."""

import json
import math
import sys
from functools import partial
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from transformers import BitImageProcessor

from evaluation import frechet_distance
from evaluation.tiny import task as tiny_task
from evaluation.tiny.split import Split
from evaluation.tiny.systems import System, SystemFigures
from examples.demo import curves, report, samples
from examples.demo.summary import reach_verdict, systems_table
from examples.tiny.data import Example, write_split
from examples.tiny.models import make_classifier
from tests.evaluation.commands import exit_status

WORDS = ("one", "two", "three")


def row(name="teacher", steps=25, guidance=1.0, fd=10.0, alignment=0.9, diversity=2.0, seconds=0.5) -> SystemFigures:
    return SystemFigures(name, steps, guidance, fd, alignment, diversity, seconds)


REAL = row("real", None, None, fd=1.0, diversity=4.0, seconds=None)


def test_the_aim_is_held_against_the_best_teacher_of_most_steps():
    """The guided row is the better at 25 steps; the few-step row, better still, is not what the aim names."""
    teachers = [row(fd=10.0), row(guidance=2.0, fd=8.0, alignment=0.95), row(steps=4, fd=1.0)]
    met = reach_verdict(
        [REAL, *teachers, row("student", 1, 0.0, fd=6.0, alignment=0.95), row("student", 4, 0.0, fd=99.0)]
    )
    assert met["met"] is True
    assert met["ratio"] == 0.75
    assert met["teacher"] == "teacher, 25 steps, guidance 2"
    assert met["text"].startswith("Aim met: the student's one step has a Frechet distance of 6 ")


@pytest.mark.parametrize(("fd", "alignment"), [(8.1, 0.99), (6.0, 0.94)])
def test_the_aim_needs_both_distance_and_alignment(fd, alignment):
    """Farther away, or right less often: missed."""
    rows = [REAL, row(guidance=2.0, fd=8.0, alignment=0.95), row("student", 1, 0.0, fd=fd, alignment=alignment)]
    assert reach_verdict(rows)["met"] is False
    assert reach_verdict(rows)["text"].startswith("Aim missed:")


def test_table_relates_diversity_to_real_images():
    """2 of 4 is 50 %; guidance of at most 1 is none; what does not apply is a dash."""
    lines = systems_table([REAL, row(guidance=2.0), row("student", 1, 0.0, diversity=3.0)]).splitlines()
    assert lines[2:] == [
        "| real | - | - | 1.00 | 90.0% | 4.00 | 100.0% | - |",
        "| teacher | 25 | 2 | 10.00 | 90.0% | 2.00 | 50.0% | 0.5000 |",
        "| student | 1 | - | 10.00 | 90.0% | 3.00 | 75.0% | 0.5000 |",
    ]


def test_network_calls_double_with_guidance():
    calls = [System("teacher", 25, guidance).network_calls for guidance in (0.0, 1.0, 2.0)]
    assert calls == [25, 25, 50]


def test_captions_cover_every_label_most_frequent_first():
    """Labels in turn, and within a label by number of images."""
    captions = ["a thin one", "a one", "a one", "a two", "a bold two", "a bold two", "a three"]
    labels = ["one", "one", "one", "two", "two", "two", "three"]
    assert tiny_task.choose_captions(captions, labels, 4) == ["a one", "a three", "a bold two", "a thin one"]
    assert len(tiny_task.choose_captions(captions, labels, 99)) == 5


def test_task_asks_for_every_held_out_caption_before_any_twice():
    """7 prompts of 3 captions: each at least twice; labels belong to the prompts; seeds differ and repeat by --seed."""
    test = Split(torch.zeros(3, 3, 4, 4), [f"a {word}" for word in WORDS], list(WORDS))
    label2id = {"one": 4, "two": 5, "three": 6}
    task, again, other = (tiny_task.make_task(test, ["a two"], label2id, 7, seed) for seed in (0, 0, 1))
    assert sorted(task.prompts[:3]) == sorted(test.captions)
    assert task.prompts[:3] == task.prompts[3:6]
    assert task.prompts[7:] == ["a two"] * tiny_task.NOISES
    assert task.labels.tolist() == [label2id[prompt.removeprefix("a ")] for prompt in task.prompts[:7]]
    assert len(set(task.seeds)) == len(task.prompts)
    assert (task.prompts, task.seeds) == (again.prompts, again.seeds)
    assert not set(task.seeds) & set(other.seeds)


class MeanColor:
    """An evaluator whose features are an image's mean color and whose class is its brightest channel."""

    image_mean = torch.zeros(1)
    label_ids = {word: i for i, word in enumerate(WORDS)}  # noqa: RUF012

    def __call__(self, images):
        return images.mean(dim=(2, 3)), images.mean(dim=(2, 3))


def split(colors: list[tuple[float, float, float]], captions: list[str], labels: list[str]) -> Split:
    """Plain images of `colors` in [0, 1]."""
    pixels = torch.tensor(colors)[:, :, None, None].expand(-1, -1, 4, 4)
    return Split(pixels * 2 - 1, captions, labels)


def test_the_floor_is_train_against_held_out():
    """Distance of the two splits; accuracy on the held-out one (1 of 2); diversity over BOTH, of the captions asked."""
    train = split([(1, 0, 0), (0.5, 0.5, 0), (0, 0, 1)], ["a one", "a one", "a two"], ["one", "one", "two"])
    test = split([(0, 0.4, 0), (1, 0, 0)], ["a two", "a three"], ["two", "three"])
    task = tiny_task.Task([], [], torch.zeros(9), ["a two", "a three"])
    row, features = tiny_task.measure_real(MeanColor(), train, test, task, seed=0)
    expected = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]])
    torch.testing.assert_close(features, torch.tensor([[0, 0.4, 0], [1, 0, 0]]))
    assert row.fd == pytest.approx(frechet_distance(features, expected), abs=1e-5)
    assert row.alignment == 0.5
    assert row.diversity == pytest.approx(math.hypot(1, 0.4))
    alone = tiny_task.Task([], [], torch.zeros(9), ["a three"])
    assert tiny_task.measure_real(MeanColor(), train, test, alone, seed=0)[0].diversity is None


def test_scalars_of_a_resumed_run_are_merged(tmp_path):
    """Two event files in two folders: iterations written again count as written last."""
    for folder, steps, value in (("b", range(1, 6), 1.0), ("a", range(4, 9), 2.0)):
        with SummaryWriter(str(tmp_path / folder)) as writer:
            for step in steps:
                writer.add_scalar("loss/student", value, step)
    steps, values = curves.read_scalars(tmp_path)["loss/student"]
    assert steps.tolist() == list(range(1, 9))
    assert values.tolist() == [1, 1, 1, 2, 2, 2, 2, 2]
    assert curves.read_scalars(tmp_path / "nothing") == {}


def test_smoothing_keeps_a_line_and_averages_a_spike():
    """A constant stays constant to its very ends; inside, the mean of 3."""
    np.testing.assert_allclose(curves.smooth(np.full(9, 2.0), 5), 2.0)
    np.testing.assert_allclose(curves.smooth(np.array([0, 0, 3.0, 0, 0]), 3), [0, 1, 1, 1, 0])


def test_mosaic_places_images():
    """Row i, column j begins at (i, j) * (size + gap); what is missing is white."""
    rows = [torch.full((2, 3, 4, 4), 0.25), torch.full((1, 3, 4, 4), 0.5)]
    canvas = samples.mosaic(rows)
    assert canvas.shape == (9, 9, 3)
    assert canvas[:4, 5:].eq(0.25).all()
    assert canvas[5:, :4].eq(0.5).all()
    assert canvas[5:, 5:].eq(1).all()
    assert canvas[4].eq(1).all()


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory):
    """A tiny world whose student IS its teacher, with a log of 3 iterations."""
    folder = tmp_path_factory.mktemp("report")
    teacher = StableDiffusionPipeline.from_pretrained(world / "teacher")
    teacher.scheduler = DDPMScheduler.from_config(teacher.scheduler.config, timestep_spacing="trailing")
    for path in (folder / "tiny/teacher", folder / "student"):
        teacher.save_pretrained(path)
    torch.manual_seed(0)
    make_classifier(list(WORDS), width=32, layers=1).save_pretrained(folder / "tiny/evaluator")
    BitImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder / "tiny/evaluator")
    generator = np.random.default_rng(0)
    examples = [
        Example(Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)), f"a handwritten {word}", word)
        for word in WORDS * 4
    ]
    write_split(folder / "tiny/data/train", examples[:6])
    write_split(folder / "tiny/data/test", examples[6:])
    with SummaryWriter(str(folder / "student/logs/add")) as writer:
        for step in range(3):
            writer.add_scalar("loss/student", 1.0 / (step + 1), step)
            writer.add_scalar("discriminator/accuracy_real", 0.5, step)
            writer.add_scalar("discriminator/accuracy_fake", 0.7, step)
    return folder


def flags(folder, *extra) -> list[str]:
    paths = ["--tiny_dir", folder / "tiny", "--student", folder / "student", "--output_dir", folder / "demo"]
    return [str(word) for word in (*paths, *extra)]


def test_a_student_that_is_its_teacher_measures_as_it_does(folders, monkeypatch, capsys):
    """Same weights, captions and seeds: the same figures to the last digit, at every number of steps; all files."""
    monkeypatch.setattr(tiny_task, "NOISES", 2)
    monkeypatch.setattr(report, "CAPTIONS", 2)
    monkeypatch.setattr(tiny_task, "seconds_per_image", partial(tiny_task.seconds_per_image, repeats=1))
    report.main(flags(folders, "--num_samples", 4, "--commands", "make demo"))
    content = json.loads((folders / "demo/report.json").read_text())
    systems = content["systems"]
    assert list(systems[0]) == ["name", "steps", "guidance", "fd", "alignment", "diversity", "seconds_per_image"]
    assert [(system["name"], system["steps"], system["guidance"]) for system in systems] == [
        ("real", None, None),
        *(("teacher", steps, guidance) for guidance in (1.0, 2.0) for steps in (1, 2, 4, 25)),
        *(("student", steps, 0.0) for steps in (1, 2, 4)),
    ]
    for teacher, student in zip(systems[1:4], systems[9:]):
        assert [student[key] for key in ("fd", "alignment", "diversity")] == [
            teacher[key] for key in ("fd", "alignment", "diversity")
        ]
    assert len({system["fd"] for system in systems[:9]}) == 9  # steps and guidance do reach the sampler
    assert all(math.isfinite(system["fd"]) and system["diversity"] > 0 for system in systems)
    assert all(system["seconds_per_image"] > 0 for system in systems[1:])
    assert content["commands"][0] == "make demo"
    assert content["commands"][1].startswith("python -m examples.demo.report --tiny_dir")
    assert content["environment"]["num_samples"] == 4
    page = (folders / "demo/report.md").read_text(encoding="utf-8")
    assert content["verdict"]["text"] in page
    assert content["verdict"]["text"] in capsys.readouterr().out
    assert systems_table([SystemFigures(**system) for system in systems]) in page
    for picture in ("samples.png", "training.png"):
        assert f"]({picture})" in page
        assert matplotlib.image.imread(folders / "demo" / picture).std() > 0.05


def test_teacher_timesteps_can_be_spaced_anew(folders):
    """As saved: trailing, from 999. With the flag `leading`, the one step stands at 1."""
    for extra, first in (((), 999), (("--teacher_timestep_spacing", "leading"), 1)):
        teacher = report.load_pipelines(report.make_report_parser().parse_args(flags(folders, *extra)), "cpu")[
            "teacher"
        ]
        teacher.scheduler.set_timesteps(1)
        assert teacher.scheduler.timesteps.tolist() == [first]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--tiny_dir", "nowhere"), "--tiny_dir nowhere: no data/train there"),
        (("--student", "nowhere"), "--student nowhere: no model_index.json there"),
        (("--num_samples", 1), "--num_samples 1: "),
        (("--teacher_guidance_scale", 1.0), "--teacher_guidance_scale 1.0: "),
        (("--logging_dir", "nowhere"), "--logging_dir nowhere: "),
    ],
)
def test_refuses_what_cannot_be_measured(folders, extra, message, capsys):
    """Before anything is loaded, in one line with the flag's name."""
    assert exit_status(report.main, flags(folders, *extra)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_package_is_one_line(folders, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert exit_status(report.main, flags(folders)) == 2
    assert "matplotlib, which is not installed. Install it with `pip install '.[evaluation]'" in capsys.readouterr().err


def some_scalars(**values) -> curves.Scalars:
    """Three iterations of every scalar that a run logs; `values` replace some."""
    tags = ["loss/student", "learning_rate/student", "images_per_second", "replaced_samples", "skipped_steps"]
    tags += [tag for curve in curves.CURVES for tag in curve.tags]
    return {tag: (np.arange(3), np.array(values.get(tag, [0, 0, 0]))) for tag in tags}


def test_the_curves_say_what_is_healthy_and_leave_out_what_says_nothing():
    """No learning rates, speed or sums; skipped iterations only where there are any."""
    chosen = curves.choose_curves(some_scalars())
    assert [curve.title for curve in chosen] == [curve.title for curve in curves.CURVES[:-1]]
    assert all(curve.healthy.startswith("Healthy: ") for curve in curves.CURVES)
    assert curves.CURVES[-1] in curves.choose_curves(some_scalars(skipped_steps=[0, 0, 2]))
    assert curves.choose_curves({"images_per_second": (np.arange(3), np.ones(3))}) == []


def test_the_curves_are_of_what_a_run_logs():
    """Every scalar that is drawn is one that the losses or the progress of a run name."""
    sources = "".join(
        path.read_text() for folder in ("distillation", "training") for path in Path(folder).rglob("*.py")
    )
    assert all(f'"{tag}"' in sources for curve in curves.CURVES for tag in curve.tags)


def test_captions_are_plain_text_in_the_pictures(tmp_path):
    """No mathematics of matplotlib."""
    panel = samples.Panel("$x^{$", ["$x^{$"], {"$x^{$": torch.zeros(1, 3, 4, 4)})
    samples.draw_samples(tmp_path / "samples.png", [panel])
    assert matplotlib.image.imread(tmp_path / "samples.png").shape[2] == 4

"""A run's folder: whole files only, one plan of seeds, no two runs in one folder."""

import os

import pytest
from PIL import Image

from evaluation.errors import EvaluationError
from evaluation.runs import files
from evaluation.runs.files import write_atomically
from evaluation.runs.run import Run, open_comparable, plan_shots
from tests.evaluation.run_folders import PROMPTS, make_run

MANIFEST = {"name": "r", "images_per_prompt": 2, "seed": 7, "call": {"num_inference_steps": 1}}


def test_plan_gives_every_image_its_own_seed_and_name():
    """All first images come first: the distances use these."""
    shots = plan_shots(["a", "b", "c"], images_per_prompt=2, seed=10)
    assert [(s.prompt, s.repeat, s.seed) for s in shots] == [
        ("a", 0, 10), ("b", 0, 11), ("c", 0, 12), ("a", 1, 13), ("b", 1, 14), ("c", 1, 15)
    ]  # fmt: skip
    assert len({s.file_name for s in shots}) == 6


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    """Killed before the rename: what stood there stands, and nothing else lies about."""
    write_atomically(tmp_path / "f", b"old")

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "f", b"new")
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


def test_a_partial_image_is_not_an_image(tmp_path):
    """What a kill -9 leaves of a write is still missing, and is drawn again."""
    run = Run.start(tmp_path / "r", MANIFEST, ["a", "b"])
    image = Image.new("RGB", (8, 8), "red")
    run.save(run.shots[0], image)
    (tmp_path / "r" / "images" / f".{run.shots[1].file_name}.99.part").write_bytes(b"\x89PNG")
    assert run.missing() == run.shots[1:]
    assert run.load(run.shots[0]).tobytes() == image.tobytes()
    with pytest.raises(EvaluationError, match="3 of 4 images are missing"):
        run.require_complete()


def test_another_run_in_the_folder_is_refused_with_the_difference(tmp_path):
    Run.start(tmp_path, MANIFEST, ["a"])
    assert Run.start(tmp_path, MANIFEST, ["a"]).manifest == Run.open(tmp_path).manifest
    with pytest.raises(EvaluationError, match=r"seed was 7, now 8"):
        Run.start(tmp_path, MANIFEST | {"seed": 8}, ["a"])
    with pytest.raises(EvaluationError, match="prompts_sha256"):
        Run.start(tmp_path, MANIFEST, ["b"])


def test_tampered_and_damaged_runs_are_refused(tmp_path):
    run = make_run(tmp_path / "r", 90)
    run.path(run.shots[2]).write_bytes(run.path(run.shots[2]).read_bytes()[:200])
    with pytest.raises(EvaluationError, match=rf"{run.shots[2].file_name}.*generate"):
        run.load(run.shots[2])
    (tmp_path / "r" / "prompts.json").write_text('["other"]')
    with pytest.raises(EvaluationError, match=r"prompts\.json was changed"):
        Run.open(tmp_path / "r")
    with pytest.raises(EvaluationError, match="is not a run"):
        Run.open(tmp_path)


def test_only_runs_over_the_same_prompts_and_seeds_compare(tmp_path):
    folders = [make_run(tmp_path / name, 90).folder for name in ("a", "b")]
    assert [run.name for run in open_comparable(folders)] == ["a", "b"]
    for name, other in {"seed": {"seed": 6}, "prompts": {"prompts": PROMPTS[:4]}}.items():
        make_run(tmp_path / name, 90, **other)
        with pytest.raises(EvaluationError, match="differ in prompts or seed"):
            open_comparable([*folders, tmp_path / name])
    make_run(tmp_path / "c", 90, name="a")
    with pytest.raises(EvaluationError, match="same --name"):
        open_comparable([*folders, tmp_path / "c"])


def test_the_drawn_size_is_kept_and_guarded(tmp_path):
    """Recorded once, read again, no reason to refuse a resumed run; another size is."""
    run = Run.start(tmp_path, MANIFEST, ["a"])
    assert run.drawn_size is None
    run.record_drawn_size((64, 32))
    again = Run.start(tmp_path, MANIFEST, ["a"])
    assert again.drawn_size == Run.open(tmp_path).drawn_size == (64, 32)
    again.record_drawn_size((64, 32))
    with pytest.raises(EvaluationError, match="now generates 32x32 pixels, but the run was started with 64x32"):
        again.record_drawn_size((32, 32))


def test_runs_of_different_sizes_are_not_compared_in_silence(tmp_path):
    folders = [make_run(tmp_path / name, 90).folder for name in "ab"]
    run = Run.open(folders[1])
    for shot in run.shots:
        run.save(shot, Image.new("RGB", (16, 32), "red"))
    with pytest.raises(EvaluationError, match="a: 32x32, b: 16x32 pixels"):
        open_comparable(folders)
    assert len(open_comparable(folders, allow_different_sizes=True)) == 2

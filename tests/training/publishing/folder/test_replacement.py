"""A student takes another's place whole or not at all: killed at every write, on full disks, beside others' files."""

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.checkpoints.test_store_crashes import killed_everywhere
from training.errors import UserError
from training.publishing.folder.layout import PublishError
from training.publishing.folder.published_folder import files_to_keep, published_files
from training.publishing.folder.replacement import READY, replacing_student
from training.publishing.folder.verification import FILES

PARTS = {"unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
INDEX = {"_class_name": "StableDiffusionPipeline", **PARTS}
WEIGHTS = "unet/diffusion_pytorch_model"


def write_student(folder, number, shards=1):
    """The least that is a student, `number` in every file; in so many shards."""
    with replacing_student(folder) as stage:
        for name in ("unet", "scheduler"):
            (stage / name).mkdir()
            (stage / name / f"{name}_config.json".removeprefix("unet_")).write_text(f"[{number}]", encoding="utf-8")
        (stage / "pipeline.py").write_text(f"number = {number}\n", encoding="utf-8")
        (stage / "add_run.json").write_text(f"[{number}]", encoding="utf-8")
        (stage / "model_index.json").write_text(json.dumps(INDEX | {"number": number}), encoding="utf-8")
        parts = [f"{WEIGHTS}{'' if shards == 1 else f'-{i}-of-{shards}'}.safetensors" for i in range(shards)]
        for part in parts:
            save_file({"w": torch.full((100,), float(number))}, stage / part)
        if shards > 1:
            index = {"weight_map": {str(i): Path(part).name for i, part in enumerate(parts)}}
            (stage / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def number_of(folder) -> int:
    """The number that all published files agree on."""
    numbers = set()
    for name in published_files(folder):
        path = folder / name
        if name.endswith(".safetensors"):
            numbers |= set(load_file(path)["w"].tolist())
        elif name == "model_index.json":
            numbers.add(json.loads(path.read_text())["number"])
        elif not name.endswith(".index.json"):
            numbers.add(int("".join(filter(str.isdigit, path.read_text()))))
    [number] = numbers
    return int(number)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("shards", [1, 2])
def test_killed_at_every_write(tmp_path, shards):
    """The old student until the new one is whole, then the new one; never a mixture, and never neither. What loaders
    meet before anyone has put it right has no `model_index.json`, or is of one student."""
    seen = []
    for folder in killed_everywhere(
        tmp_path, lambda f: write_student(f, 1, 3 - shards), lambda f: write_student(f, 2, shards)
    ):
        (folder / "notes.txt").write_text("mine")
        if (folder / "model_index.json").is_file():
            copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
            number_of(Path(copy))
            shutil.rmtree(copy)
        seen.append(number_of(folder))
        write_student(folder, 3)
        assert number_of(folder) == 3
        assert not [name for name in names(folder) if "-of-" in name or ".tmp" in name or READY in name]
        assert (folder / "notes.txt").read_text() == "mine"
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}


def test_killed_in_the_first_write(tmp_path):
    """No student, or the whole one."""
    seen = []
    for folder in killed_everywhere(tmp_path, lambda f: None, lambda f: write_student(f, 1)):
        with contextlib.suppress(PublishError):
            seen.append(number_of(folder))
            continue
        with pytest.raises(PublishError, match="does not contain a finished student"):
            published_files(folder)
        seen.append(0)
    assert seen == sorted(seen)
    assert set(seen) == {0, 1}


def add_half(folder, number):
    with replacing_student(folder, added_to=files_to_keep(folder)) as stage:
        (stage / "unet").mkdir()
        for part in "ab":
            save_file({"w": torch.full((9,), float(number))}, stage / f"{WEIGHTS}.fp16-{part}.safetensors")


def test_killed_while_a_variant_is_added(tmp_path):
    """All of its files are published, or none."""
    seen = []
    for folder in killed_everywhere(tmp_path, lambda f: write_student(f, 1), lambda f: add_half(f, 1)):
        assert number_of(folder) == 1
        seen.append(sum("fp16" in name for name in published_files(folder)))
    assert seen == sorted(seen)
    assert set(seen) == {0, 2}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_any_call_fails(tmp_path, monkeypatch, call):
    """No space left at the first, second, ... call: an error of one line, and one whole student."""
    real, failures = getattr(os, call), 0
    for k in range(1, 60):
        folder = tmp_path / str(k)
        write_student(folder, 1)
        count = 0

        def failing(*arguments, k=k):
            nonlocal count
            count += 1
            if count == k:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        monkeypatch.setattr(os, call, failing)
        try:
            write_student(folder, 2)
            error = None
        except PublishError as raised:
            error = str(raised)
        finally:
            monkeypatch.setattr(os, call, real)
        if error is None:
            break
        failures += 1
        assert "No space left on device" in error
        assert number_of(folder) in (1, 2)
    assert failures >= 5


@pytest.mark.parametrize("damage", ["truncate", "flip", "longer", "missing", "json"])
def test_damaged_students_are_never_published(tmp_path, damage):
    """Cut short, one bit flipped, too long, gone; configs as well as weights. The message names the file."""
    write_student(tmp_path, 1)
    path = tmp_path / (f"{WEIGHTS}.safetensors" if damage != "json" else "unet/config.json")
    whole = path.read_bytes()
    spoiled = {
        "truncate": whole[:-1], "flip": whole[:-1] + bytes([whole[-1] ^ 1]), "longer": whole + b"\0", "json": b"[1",
    }  # fmt: skip
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(spoiled[damage])
    with pytest.raises(PublishError, match=r"unet/(config\.json|\*\.safetensors|diffusion_pytorch_model\.safetensors)"):
        published_files(tmp_path)
    (tmp_path / FILES).unlink()  # without the list of sums all but the flipped bit still shows
    if damage != "flip":
        with pytest.raises(PublishError, match=r"damaged or truncated|Missing"):
            published_files(tmp_path)


def test_new_student_that_is_not_whole_is_refused(tmp_path):
    """Before it is put in place: the older one stays."""
    write_student(tmp_path, 1)

    def write_cut():
        with replacing_student(tmp_path) as stage:
            (stage / "unet").mkdir()
            (stage / f"{WEIGHTS}.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")

    with pytest.raises(PublishError, match="damaged or truncated"):
        write_cut()
    assert number_of(tmp_path) == 1


def test_files_of_others_are_kept(tmp_path, caplog):
    """What nobody of us wrote, or someone has changed since, is neither removed nor overwritten."""
    write_student(tmp_path, 1, shards=2)
    (tmp_path / "unet" / "notes.txt").write_text("mine")
    (tmp_path / f"{WEIGHTS}.fp16.safetensors").write_bytes(b"theirs")
    (tmp_path / f"{WEIGHTS}.safetensors").write_bytes(b"theirs too")  # in the way of the new one
    changed = tmp_path / f"{WEIGHTS}-0-of-2.safetensors"
    changed.write_bytes(b"changed")
    write_student(tmp_path, 2)
    assert number_of(tmp_path) == 2
    assert (tmp_path / "unet" / "notes.txt").read_text() == "mine"
    assert (tmp_path / f"{WEIGHTS}.fp16.safetensors").read_bytes() == b"theirs"
    assert (tmp_path / "replaced-1" / f"{WEIGHTS}.safetensors").read_bytes() == b"theirs too"
    assert changed.read_bytes() == b"changed"
    assert not (tmp_path / f"{WEIGHTS}-1-of-2.safetensors").exists()
    assert "was not written by this program" in caplog.text


def test_links_to_another_model_are_not_followed(tmp_path):
    """A component's folder that is a link: writing through it would overwrite the model behind it."""
    write_student(tmp_path / "teacher", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "unet").symlink_to(tmp_path / "teacher" / "unet")
    with pytest.raises(UserError, match=r"out/unet is in the way"):
        write_student(tmp_path / "out", 2)
    assert number_of(tmp_path / "teacher") == 1
    assert "unet" in os.listdir(tmp_path / "out")


def test_folder_of_an_earlier_version(tmp_path):
    """It has no list of files, and is replaced all the same: its record of the run says that it is ours."""
    write_student(tmp_path, 1)
    (tmp_path / FILES).unlink()
    assert number_of(tmp_path) == 1
    write_student(tmp_path, 2)
    assert number_of(tmp_path) == 2
    assert not list(tmp_path.glob("replaced-*"))

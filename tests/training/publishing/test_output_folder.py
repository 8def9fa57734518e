"""Output folders in which a run would damage something are refused before it begins; others may be used."""

import errno
import os
import shutil
import tempfile

import pytest
import torch
from safetensors.torch import save_file

from tests.training.checkpoints.writers import save
from training.errors import OptionError
from training.publishing.output_folder import check_output_folder


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "flag", ["--pretrained_teacher_model", "--pretrained_student_model", "--train_data_dir", "--cache_dir_latents"]
)
@pytest.mark.parametrize(("place", "how"), [("a/b", "same folder"), ("a/b/c", "contains it"), ("a", "is in it")])
def test_folder_that_the_run_reads(tmp_path, flag, place, how):
    """The same, inside or around; through a link, too. Its neighbour will do."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for read in (tmp_path / "a" / "b", tmp_path / "link" / "b"):
        with pytest.raises(OptionError, match=rf"--output_dir got .*: {flag} '.*/b' .*{how}.*Give another folder"):
            check_output_folder(tmp_path / place, read={flag: str(read)})
    check_output_folder(tmp_path / "a" / "bb", read={flag: str(tmp_path / "a" / "b")})


def test_hub_ids_and_absent_flags_are_no_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_output_folder("out", read={"--pretrained_teacher_model": "out/model", "--train_data_dir": None})
    assert (tmp_path / "out").is_dir()


def test_cache_that_is_not_there_yet(tmp_path):
    with pytest.raises(OptionError, match="--cache_dir_latents"):
        check_output_folder(tmp_path / "out", read={"--cache_dir_latents": str(tmp_path / "out" / "cache")})


@pytest.mark.parametrize("place", ["models", "models/mine", "models/mine/unet/out"])
def test_model_that_is_not_ours(world, tmp_path, place):
    """The folder of a model, one around it and one inside it. Nothing is changed."""
    shutil.copytree(world / "teacher", tmp_path / "models" / "mine")
    before = files(tmp_path)
    with pytest.raises(OptionError, match=r"--output_dir got .*(did not write|inside the model)"):
        check_output_folder(tmp_path / place)
    with pytest.raises(OptionError):
        check_output_folder(tmp_path / place, "latest")
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["lora.safetensors", "sd.ckpt", "pytorch_model.bin", "a/b/model.fp16.safetensors"])
def test_weights_alone_are_a_model(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": torch.ones(1)}, tmp_path / name)
    with pytest.raises(OptionError, match="did not write"):
        check_output_folder(tmp_path)


def test_used_folder_is_refused_unless_it_is_resumed(tmp_path):
    """By a checkpoint, or by a student. The message names the two ways on."""
    match = r"contains checkpoint-5 from an earlier run\. Resume that run with --resume_from_checkpoint latest, or give"
    save(tmp_path / "out", 5)
    with pytest.raises(OptionError, match=match):
        check_output_folder(tmp_path / "out")
    for resume_from in ("latest", "checkpoint-5", str(tmp_path / "out" / "checkpoint-5")):
        check_output_folder(tmp_path / "out", resume_from)
    other = save(tmp_path / "other", 7)
    with pytest.raises(OptionError, match="belongs to another run"):
        check_output_folder(tmp_path / "out", str(other))
    check_output_folder(tmp_path / "new", str(other))
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "add_run.json").write_text("{}")
    with pytest.raises(OptionError, match=r"contains add_run\.json from an earlier run"):
        check_output_folder(tmp_path / "student")


def test_harmless_content(tmp_path):
    """Notes, logs and exports of ours; a folder beside many students of ours."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    save_file({"a": torch.ones(1)}, tmp_path / "s.safetensors", {"student_timesteps": "999"})
    save(tmp_path / "earlier", 3)
    check_output_folder(tmp_path)


def test_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    """Read-only, or a file where the folder should be: noticed before training."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"file/out', which cannot be written to: .*Not a directory"):
        check_output_folder(tmp_path / "file" / "out")

    def refuse(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root may write everywhere
    with pytest.raises(OptionError, match=r"cannot be written to: .*Read-only file system"):
        check_output_folder(tmp_path / "closed")

"""Which files of an output folder are the published layout, and the half-precision copies of its weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save

from pipelines import ADDPipeline, student_scheduler
from training.checkpoints.folder_lock import LOCK
from training.publishing.command import make_parser
from training.publishing.folder.layout import PublishError, stale_files
from training.publishing.folder.published_folder import published_files, save_published
from training.publishing.folder.verification import FILES
from training.publishing.hub.attempt import reason
from training.publishing.variant import add_variant

WEIGHTS = save({"a": torch.ones(2)})
UNET = "unet/diffusion_pytorch_model"


@pytest.fixture(scope="module")
def pipeline(world) -> ADDPipeline:
    pipe = ADDPipeline.from_pretrained(world / "teacher")
    pipe.scheduler = student_scheduler(pipe.scheduler.config, "epsilon")
    return pipe


@pytest.fixture(scope="module")
def published(pipeline, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "student"
    save_published(pipeline, folder)
    return folder


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(published, tmp_path / "student"))


def test_all_that_the_pipeline_saved_and_nothing_else(published, folder):
    """An allow-list: whatever is not of the layout stays behind, wherever it lies and however it is named."""
    saved = sorted(p.relative_to(published).as_posix() for p in published.rglob("*") if p.is_file())
    saved = [name for name in saved if name not in (LOCK, FILES)]
    assert published_files(published) == saved
    others = (
        "add_run.json", ".env", "token", "optimizer.safetensors", "checkpoint-2/student.safetensors", "logs/events.out",
        "validation/step-2.png", "unet/optimizer.bin", "unet/diffusion_pytorch_model.bin", "unet/old/config.json",
        "secret/config.json", ".push-x/unet/config.json", "unet/.config.json",
    )  # fmt: skip
    for name in others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert published_files(folder) == saved
    for name in ("README.md", "samples.png"):
        (folder / name).write_bytes(b"x")
        assert name in published_files(folder)
    (folder / "pytorch_lora_weights.safetensors").write_bytes(WEIGHTS)
    assert "pytorch_lora_weights.safetensors" not in published_files(folder)  # training has not written it
    (folder / FILES).unlink()
    assert "pytorch_lora_weights.safetensors" in published_files(folder)


def test_unfinished_folders_are_refused(folder, tmp_path):
    """With what is missing, by name."""
    with pytest.raises(
        PublishError, match=r"does not contain a finished student: there is neither model_index.json nor pytorch_lora"
    ):
        published_files(tmp_path)
    (folder / "pipeline.py").unlink()
    (folder / f"{UNET}.safetensors").unlink()
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(PublishError) as caught:
        published_files(folder)
    missing = str(caught.value).split("Missing: ")[1]
    assert missing == "pipeline.py, tokenizer/, unet/*.safetensors (UNet2DConditionModel)"


def test_lora_alone_needs_to_say_how_it_is_sampled(tmp_path):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(WEIGHTS)
    with pytest.raises(PublishError, match=r"Missing: scheduler/scheduler_config\.json$"):
        published_files(tmp_path)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    assert published_files(tmp_path) == ["pytorch_lora_weights.safetensors", "scheduler/scheduler_config.json"]


def test_shards(pipeline, folder):
    """As diffusers and transformers write them; a lost one is missed."""
    shutil.rmtree(folder)
    pipeline.save_pretrained(folder, max_shard_size="40KB")
    names = published_files(folder)
    assert f"{UNET}.safetensors.index.json" in names
    shards = sorted(set(json.loads((folder / f"{UNET}.safetensors.index.json").read_text())["weight_map"].values()))
    assert len(shards) > 1
    assert {f"unet/{shard}" for shard in shards} < set(names)
    (folder / "unet" / shards[1]).unlink()
    with pytest.raises(PublishError, match=f"Missing: unet/{shards[1]}$"):
        published_files(folder)


@pytest.mark.parametrize("max_shard_size", ["10GB", "20KB"])
def test_half_precision_variant(folder, monkeypatch, max_shard_size):
    """Beside the full weights, in as many shards as diffusers likes, and equal to a cast; configs are not touched."""
    if max_shard_size != "10GB":
        save = StableDiffusionPipeline.save_pretrained
        monkeypatch.setattr(
            StableDiffusionPipeline,
            "save_pretrained",
            lambda self, to, **options: save(self, to, max_shard_size=max_shard_size, **options),
        )
    before = {name: (folder / name).read_bytes() for name in published_files(folder)}
    new = add_variant(folder, "fp16")
    assert sorted(published_files(folder)) == sorted([*before, *new])
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert {name.split("/")[0] for name in new} == {"text_encoder", "unet", "vae"}
    assert any(".index." in name for name in new) == (max_shard_size != "10GB")

    half = StableDiffusionPipeline.from_pretrained(folder, variant="fp16", dtype=torch.float16)
    full = load_file(folder / f"{UNET}.safetensors")
    loaded = half.unet.state_dict()
    assert all(torch.equal(loaded[name], full[name].half()) for name in full)
    assert list(folder.glob(".variant-*")) == []


def test_variant_of_an_earlier_student_goes_with_it(pipeline, folder):
    """Trained again into the same folder: old fp16 weights must not be published beside the new ones."""
    add_variant(folder, "fp16")
    save_published(pipeline, folder)
    assert not [name for name in published_files(folder) if "fp16" in name]


def test_variant_of_a_lora_is_refused(tmp_path):
    with pytest.raises(PublishError, match=r"--variant got 'fp16': .* only a LoRA; leave the flag out"):
        add_variant(tmp_path, "fp16")


def test_stale_files_are_those_in_folders_written_again():
    remote = ["README.md", "unet/config.json", "unet/model.fp16.safetensors", "unet/a.txt", "lora/model.safetensors"]
    assert stale_files(remote, ["model_index.json", "unet/config.json"]) == ["unet/model.fp16.safetensors"]


def test_reason_is_that_of_the_innermost_error():
    """The client wraps what its upload threads raise; a server's answer says more than its wrapping."""
    outer = RuntimeError("Error while uploading 'a' to the Hub.")
    outer.__cause__ = OSError("the disk\n  is gone")
    assert reason(outer) == "OSError: the disk is gone"


def test_flags(capsys):
    """What a user types; the repo is not guessed."""
    args = make_parser().parse_args(["out", "--repo_id", "me/it"])
    assert (args.private, args.revision, args.license, args.variant) == (None, "main", None, None)
    with pytest.raises(SystemExit):
        make_parser().parse_args(["out"])
    assert "--repo_id" in capsys.readouterr().err

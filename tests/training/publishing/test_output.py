"""What a run leaves in its folder: drawn at the size it was trained at, whole, beside an edited card."""

import json

import pytest
from diffusers import StableDiffusionPipeline

from tests.support.runs import run
from training.publishing.folder.published_folder import published_files
from training.publishing.folder.replacement import READY
from training.publishing.folder.verification import FILES, read_files


@pytest.mark.parametrize("extra", [(), ("--use_lora", "--lora_rank", 2, "--fuse_lora")])
def test_default_size_is_the_one_trained_at(world, tmp_path, extra):
    """16 pixels where the base draws another size: the published UNet says so, and a stock pipeline draws it."""
    base = json.loads((world / "teacher" / "unet" / "config.json").read_text())["sample_size"]
    assert base != 4
    run(world, tmp_path / "out", "--resolution", 16, "--max_train_steps", 1, *extra)
    assert json.loads((tmp_path / "out" / "unet" / "config.json").read_text())["sample_size"] == 4
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a seven", num_inference_steps=1, guidance_scale=0.0).images[0].size == (16, 16)
    names = published_files(tmp_path / "out")
    assert set(names) < read_files(tmp_path / "out").keys()
    assert not (tmp_path / "out" / READY).exists()


def test_resumed_run_replaces_its_student_and_keeps_an_edited_card(world, tmp_path):
    """The list of files follows; the card stays the owner's."""
    out = tmp_path / "out"
    run(world, out, "--max_train_steps", 1, "--checkpointing_steps", 1)
    before = read_files(out)
    (out / "README.md").write_text("# Mine\n")
    flags = ("--checkpointing_steps", 1, "--resume_from_checkpoint", "latest")
    run(world, out, "--max_train_steps", 2, *flags)
    assert (out / "README.md").read_text() == "# Mine\n"
    after = read_files(out)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert after[weights] != before[weights]
    assert "README.md" in published_files(out)
    assert (out / FILES).is_file()

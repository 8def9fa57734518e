"""The training scripts as a user runs them: short runs, kills, resumes, and what they refuse."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoPipelineForText2Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_add_sdxl
from pipelines import ADDPipeline
from tests.support import tiny_world
from tests.support.runs import run
from training.monitoring.validation import CELL

ROOT = Path(__file__).parent.parent.parent


def test_published_model_is_the_average_and_loads_both_ways(script, tmp_path):
    """The EMA is what is published; stock Auto class and ADDPipeline draw the same picture with it."""
    straight = tmp_path / "out"
    script.run(straight, "--use_ema", "--checkpointing_steps", 2)
    stock = AutoPipelineForText2Image.from_pretrained(straight)
    assert type(stock) is script.stock
    ours = ADDPipeline.from_pretrained(straight)
    assert type(ours) is script.ours
    images = [
        p("a handwritten one", num_inference_steps=1, guidance_scale=0.0, height=32, width=32, output_type="np",
          generator=torch.Generator().manual_seed(0)).images
        for p in (stock, ours)
    ]  # fmt: skip
    assert (images[0] == images[1]).all()
    student = load_file(straight / "checkpoint-2" / "student.safetensors")
    published = load_file(straight / script.network / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(student[k], published[k]) for k in published)


def test_validation_grids_and_tensorboard(script, tmp_path):
    """Every scalar of the loss, the accuracies, norms and rates are logged; grids have a row a step count."""
    out = tmp_path / "out"
    script.run(
        out, "--report_to", "tensorboard", "--validation_prompts", "one", "two", "three", "--validation_steps", 1
    )
    from PIL import Image

    width, height = Image.open(out / "validation" / "step-2.png").size
    assert width > 3 * CELL
    assert height > 4 * CELL  # the teacher's row, and 1, 2 and 4 steps
    events = EventAccumulator(str(out / "logs" / "add")).Reload()
    expected = {
        "loss/discriminator", "loss/r1", "loss/adversarial", "loss/distillation", "loss/student",
        "discriminator/accuracy_real", "discriminator/accuracy_fake", "gradient_norm/student",
        "gradient_norm/discriminator", "learning_rate/student", "learning_rate/discriminator", "images_per_second",
    }  # fmt: skip
    assert expected <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["validation"]


def test_counted_facts_of_the_data_reach_the_trackers(world, tmp_path):
    """Replaced and enlarged samples; a resumed run continues the counts."""
    tiny_world.write_flawed_images(tmp_path / "data")
    flags = ("--train_data_dir", tmp_path / "data", "--report_to", "tensorboard", "--resume_from_checkpoint", "latest")
    for epochs in (1, 2):
        run(world, tmp_path / "out", *flags, "--max_train_steps", 2 * epochs)  # 2 x 4 samples: all 8, once an epoch
        events = EventAccumulator(str(tmp_path / "out" / "logs" / "add")).Reload()
        assert events.Scalars("replaced_samples")[-1].value == epochs
        assert events.Scalars("enlarged_samples")[-1].value == 2 * epochs


@pytest.mark.parametrize(
    "extra",
    [
        ("--adversarial_weight", 0),
        ("--distillation_weight", 0),
        ("--student_init", "random"),
        ("--distillation_weighting", "nfsd", "--distillation_space", "latent"),
        ("--teacher_guidance_scale", 3, "--teacher_steps", 2, "--negative_prompt", "blurry"),
        ("--discriminator_text_model", "none", "--discriminator_image_model", "none"),
        ("--use_8bit_adam", "--use_ema"),
        ("--gradient_checkpointing",),
        ("--mixed_precision", "bf16", "--validation_prompts", "one"),
        ("--random_flip", "--center_crop", "--no_diffaugment", "--r1_gamma", 0, "--lr_scheduler", "linear"),
        ("--discriminator_input_size", 24),
        ("--reconstruct_real", "--decode_crop_size", 24),
        ("--discriminator_norm", "mixed_batch", "--r1_gamma", 1e-2),
        ("--discriminator_norm", "group", "--gradient_accumulation_steps", 2),
        ("--streaming", "--lr_warmup_steps", 0),
        ("--student_timesteps", 699, 799, 899, 999),
    ],
    ids=lambda extra: " ".join(map(str, extra))[:40],
)
def test_options_run_to_a_loadable_model(script, tmp_path, extra):
    script.run(tmp_path / "out", *extra)
    pipe = ADDPipeline.from_pretrained(tmp_path / "out")
    image = pipe("a handwritten one", height=32, width=32, output_type="np").images[0]
    assert image.shape == (32, 32, 3)
    assert image.std() > 0


@pytest.mark.parametrize("mode", ["terminal", "rescale"])
def test_v_prediction_student(v_world, tmp_path, mode):
    run(v_world, tmp_path / "out", "--zero_terminal_snr", mode)
    config = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert config["prediction_type"] == "v_prediction"
    assert config["rescale_betas_zero_snr"] is (mode == "rescale")
    assert config["timestep_spacing"] == "trailing"


def test_gradient_checkpointing_does_not_change_the_result(world, tmp_path):
    for name, extra in (("plain", ()), ("checkpointed", ("--gradient_checkpointing",))):
        run(world, tmp_path / name, *extra)
    a, b = (load_file(tmp_path / n / "unet/diffusion_pytorch_model.safetensors") for n in ("plain", "checkpointed"))
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def test_nan_run_ends_with_a_clear_error_and_finite_weights(world, tmp_path, monkeypatch, capsys):
    """A discriminator rate that explodes: every loss after it is not finite, the run says so and names the samples."""
    import distillation.losses

    monkeypatch.setattr(distillation.losses, "hinge_generator_loss", lambda fake: fake.mean() * float("nan"))
    with pytest.raises(SystemExit):
        run(world, tmp_path / "out", "--max_train_steps", 20)
    error = capsys.readouterr().err
    assert re.search(r"10 iterations in a row.*Ids of the last samples: \[\d+, .*--learning_rate", error)


def test_other_autoencoder_is_published_with_the_sdxl_student(sdxl_world, world, tmp_path):
    vae = world / "teacher" / "vae"
    train_add_sdxl.main(tiny_world.flags(sdxl_world, tmp_path, "--pretrained_vae_model_name_or_path", vae))
    ours, theirs = (load_file(d / "diffusion_pytorch_model.safetensors") for d in (tmp_path / "vae", vae))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads((tmp_path / "vae/config.json").read_text())["scaling_factor"] == 0.18215


def test_single_file_beside_the_student(script, tmp_path, capsys):
    """What the original checkpoints call the UNet, holding the published weights."""
    if script.network == "transformer":
        with pytest.raises(SystemExit):
            script.run(tmp_path / "out", "--export_single_file", tmp_path / "student.safetensors")
        assert "--export_single_file got" in capsys.readouterr().err
        return
    script.run(tmp_path / "out", "--export_single_file", tmp_path / "student.safetensors")
    file = load_file(tmp_path / "student.safetensors")
    unet = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(file["model.diffusion_model.out.2.weight"], unet["conv_out.weight"])


@pytest.mark.parametrize("name", ["train_add.py", "train_add_sdxl.py", "train_add_sd3.py"])
def test_help_is_grouped_and_runs_as_a_script(name):
    out = subprocess.run(
        [sys.executable, ROOT / name, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    ).stdout
    for group in ("models:", "data:", "method (paper 3.1 and 3.3):", "discriminator (paper 3.2):", "optimization:"):
        assert group in out

"""train_add.py and train_add_sdxl.py as a user runs them: short runs, kills, resumes, and what they refuse."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import AutoPipelineForText2Image, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_add
import train_add_sdxl
from pipelines import ADDPipeline, ADDXLPipeline
from tests import tiny_world
from training.checkpoint import load_checkpoint
from training.families import Family

ROOT = Path(__file__).parent.parent
# A run of 5 iterations of 4 with 24 samples crosses no epoch; of 7, it does.
RUN = (
    "--use_ema",
    "--checkpointing_steps",
    2,
    "--lr_scheduler",
    "cosine",
    "--lr_warmup_steps",
    2,
    "--max_train_steps",
    7,
)


@dataclass
class Script:
    """One of the two scripts, the world it is run in, and what it publishes."""

    module: ModuleType
    world: Path
    stock: type
    ours: type

    def run(self, output_dir, *extra):
        self.module.main(tiny_world.flags(self.world, output_dir, *extra))


SCRIPTS = {
    "sd": ("world", train_add, StableDiffusionPipeline, ADDPipeline),
    "sdxl": ("sdxl_world", train_add_sdxl, StableDiffusionXLPipeline, ADDXLPipeline),
}


@pytest.fixture(scope="module", params=SCRIPTS)
def script(request):
    world, module, stock, ours = SCRIPTS[request.param]
    return Script(module, request.getfixturevalue(world), stock, ours)


def run(world, output_dir, *extra):
    train_add.main(tiny_world.flags(world, output_dir, *extra))


def final_state(output_dir, step):
    checkpoint = load_checkpoint(output_dir / f"checkpoint-{step}")
    return checkpoint.tensors, {k: v for k, v in checkpoint.state.items() if k != "arguments"}


def assert_same_run(a, b):
    """Bit-equal student, EMA, discriminator and both optimizers; equal counters and learning rates."""
    assert a[1] == b[1]
    assert a[0].keys() == b[0].keys()
    for group, tensors in a[0].items():
        assert tensors.keys() == b[0][group].keys()
        different = [name for name, tensor in tensors.items() if not torch.equal(tensor, b[0][group][name])]
        assert different == [], group


@pytest.fixture(scope="module")
def straight(script, tmp_path_factory):
    """The uninterrupted run that the others must equal. Its last checkpoint is at 6; the student at 7 is published."""
    output_dir = tmp_path_factory.mktemp("straight") / "out"
    script.run(output_dir, *RUN)
    return output_dir


def killer(script, output_dir, at_iteration, *extra):
    """Run in a process that kills itself with SIGKILL once `at_iteration` has been computed."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import torch; torch.set_num_threads(1)
import training.loop as loop, {script.module.__name__} as script
original = loop.Trainer._iteration
def deadly(self, window):
    if self.state.step == {at_iteration}:
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, window)
loop.Trainer._iteration = deadly
script.main(sys.argv[1:])
"""
    argv = tiny_world.flags(script.world, output_dir, *RUN, *extra)
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize("at_iteration", [3, 6])
def test_killed_and_resumed_is_bit_equal(script, straight, tmp_path, at_iteration):
    """SIGKILL in mid-epoch (and across its end), then --resume_from_checkpoint latest (reliability 1 and 5)."""
    output_dir = tmp_path / "out"
    assert killer(script, output_dir, at_iteration).returncode == -signal.SIGKILL
    assert (output_dir / f"checkpoint-{at_iteration // 2 * 2}").is_dir()
    assert not (output_dir / "model_index.json").exists()
    script.run(output_dir, *RUN, "--resume_from_checkpoint", "latest")
    assert_same_run(final_state(output_dir, 6), final_state(straight, 6))
    ours, theirs = (load_file(d / "unet/diffusion_pytorch_model.safetensors") for d in (output_dir, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_resumes_with_accumulation_are_bit_equal(world, tmp_path):
    """Stopped twice, with two micro-batches an iteration and data workers."""
    extra = ("--gradient_accumulation_steps", 2, "--train_batch_size", 2, "--dataloader_num_workers", 1,
             "--checkpointing_steps", 1, "--use_ema")  # fmt: skip
    run(world, tmp_path / "straight", *extra, "--max_train_steps", 3)
    for steps in (1, 2, 3):
        run(world, tmp_path / "parts", *extra, "--max_train_steps", steps, "--resume_from_checkpoint", "latest")
    assert_same_run(final_state(tmp_path / "parts", 3), final_state(tmp_path / "straight", 3))


def test_damaged_checkpoint_is_passed_over(script, straight, tmp_path):
    """The newest checkpoint has a flipped bit: the one before it is used, and the end is the same."""
    output_dir = tmp_path / "out"
    script.run(output_dir, *RUN)
    victim = output_dir / "checkpoint-6" / "student.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    script.run(output_dir, *RUN, "--resume_from_checkpoint", "latest")
    assert_same_run(final_state(output_dir, 6), final_state(straight, 6))


def test_checkpoint_holds_no_pickle_and_no_token(straight):
    files = {p.name for p in (straight / "checkpoint-6").iterdir()}
    assert files == {
        "student.safetensors", "student_ema.safetensors", "student_optimizer.safetensors", "discriminator.safetensors",
        "discriminator_optimizer.safetensors", "state.json", "manifest.json",
    }  # fmt: skip
    assert "hub_token" not in load_checkpoint(straight / "checkpoint-6").state["arguments"]


def test_published_model_is_the_average_and_loads_both_ways(script, straight):
    """The EMA is what is published; stock Auto class and ADDPipeline draw the same picture with it."""
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
    student = load_file(straight / "checkpoint-6" / "student.safetensors")
    published = load_file(straight / "unet" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(student[k], published[k]) for k in published)


def test_validation_grids_and_tensorboard(script, tmp_path):
    """Every scalar of the loss, the accuracies, norms and rates are logged; grids have a row a step count."""
    out = tmp_path / "out"
    script.run(
        out, "--report_to", "tensorboard", "--validation_prompts", "one", "two", "three", "--validation_steps", 1
    )
    from PIL import Image

    assert Image.open(out / "validation" / "step-2.png").size == (3 * 32, 3 * 32)
    events = EventAccumulator(str(out / "logs" / "add")).Reload()
    expected = {
        "loss/discriminator", "loss/r1", "loss/adversarial", "loss/distillation", "loss/student",
        "discriminator/accuracy_real", "discriminator/accuracy_fake", "gradient_norm/student",
        "gradient_norm/discriminator", "learning_rate/student", "learning_rate/discriminator", "images_per_second",
    }  # fmt: skip
    assert expected <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["validation"]


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


def test_nan_run_ends_with_a_clear_error_and_finite_weights(world, tmp_path, monkeypatch):
    """A discriminator rate that explodes: every loss after it is not finite, the run says so and names the samples."""
    import training.step

    monkeypatch.setattr(training.step, "hinge_generator_loss", lambda fake: fake.mean() * float("nan"))
    from training.loop import NonFiniteError

    with pytest.raises(NonFiniteError, match=r"10 iterations in a row.*Sample ids since: \[\d+, .*--learning_rate"):
        run(world, tmp_path / "out", "--max_train_steps", 20)


def refused(script, capsys, *argv):
    """The message with which the command line is turned down; nothing may have been loaded (there is no such repo)."""
    with pytest.raises(SystemExit) as error:
        script.main(["--pretrained_teacher_model", "nobody/nothing", *map(str, argv)])
    assert error.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), r"--dataset_name got None and --train_data_dir got None: give exactly one"),
        (("--dataset_name", "x", "--train_data_dir", "."), "give exactly one of them"),
        (("--train_data_dir", "/nowhere"), r"--train_data_dir got '/nowhere': this is no folder"),
        (("--dataset_name", "x", "--streaming"), "--streaming got True.*--max_train_steps"),
        (("--dataset_name", "x", "--resolution", 33), "--resolution got 33: give a multiple of 8"),
        (("--dataset_name", "x", "--train_batch_size", 0), "--train_batch_size got 0: give 1 or more"),
        (("--dataset_name", "x", "--learning_rate", 0), "--learning_rate got 0.0: give a number above 0"),
        (("--dataset_name", "x", "--ema_decay", 1), r"--ema_decay got 1.0: give a number in \[0, 1\)"),
        (("--dataset_name", "x", "--r1_gamma", -1), "--r1_gamma got -1.0: give 0 or more"),
        (("--dataset_name", "x", "--student_timesteps", 999, 499), "--student_timesteps got .* rising"),
        (("--dataset_name", "x", "--student_timestep_probabilities", 1), "one for each of the 4"),
        (("--dataset_name", "x", "--student_timestep_probabilities", 1, 1, 1, 1), "sum to 1"),
        (("--dataset_name", "x", "--adversarial_weight", 0, "--distillation_weight", 0), "nothing would be trained"),
        (("--dataset_name", "x", "--teacher_timestep_range", 5, 5), "0 <= LOW < HIGH"),
        (("--dataset_name", "x", "--distillation_weighting", "nfsd", "--teacher_steps", 2), "got 2: nfsd"),
        (("--dataset_name", "x", "--negative_prompt", "ugly"), "got 'ugly'.*--teacher_guidance_scale"),
        (("--dataset_name", "x", "--discriminator_feature_model", "none"), "--adversarial_weight 0"),
        (("--dataset_name", "x", "--hub_model_id", "me/it"), "--hub_model_id got 'me/it': add --push_to_hub"),
        (("--dataset_name", "x", "--hub_token", "hf_secret"), r"--hub_token got '\*\*\*': add --push_to_hub"),
        (("--dataset_name", "x", "--push_to_hub", "--hub_token", "hf_secret", "--report_to", "wandb"), "hf auth login"),
        (("--dataset_name", "x", "--hub_private_repo"), "--hub_private_repo got True: add --push_to_hub"),
        (("--dataset_name", "x", "--push_every_checkpoint"), "--push_every_checkpoint got True: add --push_to_hub"),
        (("--dataset_name", "x", "--student_revision", "v2"), "--student_revision got 'v2'.*use --revision"),
        (("--dataset_name", "x", "--student_variant", "fp16"), "--student_variant got 'fp16'.*use --variant"),
        (("--dataset_name", "x", "--use_lora", "--lora_rank", 0), "--lora_rank got 0: give 1 or more"),
        (("--dataset_name", "x", "--use_lora", "--lora_alpha", 0), "--lora_alpha got 0.0: give a number above 0"),
        (("--dataset_name", "x", "--use_lora", "--lora_dropout", 1), r"--lora_dropout got 1.0: give a number in "),
        (("--dataset_name", "x", "--lora_alpha", 8), "--lora_alpha got 8.0: add --use_lora"),
        (("--dataset_name", "x", "--lora_target_modules", "to_q"), "--lora_target_modules got .*: add --use_lora"),
        (("--dataset_name", "x", "--fuse_lora"), "--fuse_lora got True: add --use_lora"),
        (("--dataset_name", "x", "--use_lora", "--student_init", "random"), "--student_init got 'random'.*leave out"),
        (("--dataset_name", "x", "--decode_crop_size", 100), "--decode_crop_size got 100: give a multiple of 8 up to"),
        (("--dataset_name", "x", "--decode_crop_size", 520), "--decode_crop_size got 520.*--resolution 512"),
        (("--dataset_name", "x", "--decode_crop_size", 64, "--distillation_space", "latent", "--adversarial_weight", 0),
         "--decode_crop_size got 64: nothing is decoded"),
        (("--dataset_name", "x", "--decode_crop_halo", -1), "--decode_crop_halo got -1: give 0 or more"),
        (("--dataset_name", "x", "--cache_dir_latents", "c"), "--cache_dir_latents got 'c'.*use --center_crop"),
        (("--dataset_name", "x", "--cache_dir_latents", "c", "--center_crop", "--random_flip"), "leave out --random"),
        (("--dataset_name", "x", "--cache_dir_latents", "c", "--center_crop", "--streaming", "--max_train_steps", 1),
         "--cache_dir_latents got 'c': a stream has no index"),
        (("--dataset_name", "x", "--export_single_file", "a.ckpt"), "--export_single_file got 'a.ckpt': give a file"),
        (("--dataset_name", "x", "--export_single_file", "a.safetensors", "--use_lora"), "add --fuse_lora"),
        (("--dataset_name", "x", "--teacher_precision", "4bit", "--distillation_weight", 0), "4bit.*loads no teacher"),
        (("--dataset_name", "x", "--enable_xformers_memory_efficient_attention"), "xformers is not installed"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("module", [train_add, train_add_sdxl], ids=["sd", "sdxl"])
def test_refused_before_anything_is_loaded(capsys, argv, message, module):
    error = refused(module, capsys, *argv)
    assert re.search(message, error.replace("\n", " ")), error
    assert "hf_secret" not in error


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--student_timesteps", 249, 499), r"--student_timesteps got \[249, 499\]: the last must be 999"),
        (("--zero_terminal_snr", "rescale"), "--zero_terminal_snr got 'rescale'.*divides by alpha_999 = 0.*terminal"),
        (("--teacher_timestep_range", 20, 1001), "HIGH is at most 1000"),
    ],
)
def test_refused_by_the_scheduler_before_any_weight_is_loaded(world, tmp_path, extra, message, monkeypatch, capsys):
    for part in ("load_unet", "load_vae", "load_text_encoders"):
        monkeypatch.setattr(Family, part, lambda *a: pytest.fail("weights were loaded"))
    with pytest.raises(SystemExit):
        run(world, tmp_path / "out", *extra)
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


def test_resume_with_another_objective_is_refused(script, straight, capsys):
    with pytest.raises(SystemExit):
        script.run(straight, *RUN, "--resume_from_checkpoint", "latest", "--distillation_weighting", "sds",
            "--learning_rate", 1e-4)  # fmt: skip
    error = capsys.readouterr().err
    assert re.search(r"distillation_weighting: '?exponential'? -> '?sds'?", error)
    assert "learning_rate" in error


def test_streamed_resume_with_another_batch_size_is_refused(world, tmp_path, capsys):
    """A stream's order depends on the batch size; an indexed set's does not, and resumes."""
    flags = ("--checkpointing_steps", 1, "--resume_from_checkpoint", "latest")
    for name, extra in (("indexed", ()), ("streamed", ("--streaming",))):
        run(world, tmp_path / name, *flags, *extra, "--max_train_steps", 1)
    run(world, tmp_path / "indexed", *flags, "--train_batch_size", 2)
    with pytest.raises(SystemExit):
        run(world, tmp_path / "streamed", *flags, "--streaming", "--train_batch_size", 2)
    assert "train_batch_size: 4 -> 2" in capsys.readouterr().err


def test_other_autoencoder_is_published_with_the_sdxl_student(sdxl_world, world, tmp_path):
    vae = world / "teacher" / "vae"
    train_add_sdxl.main(tiny_world.flags(sdxl_world, tmp_path, "--pretrained_vae_model_name_or_path", vae))
    ours, theirs = (load_file(d / "diffusion_pytorch_model.safetensors") for d in (tmp_path / "vae", vae))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads((tmp_path / "vae/config.json").read_text())["scaling_factor"] == 0.18215


def test_single_file_beside_the_student(script, tmp_path):
    """What the original checkpoints call the UNet, holding the published weights."""
    script.run(tmp_path / "out", "--export_single_file", tmp_path / "student.safetensors")
    file = load_file(tmp_path / "student.safetensors")
    unet = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(file["model.diffusion_model.out.2.weight"], unet["conv_out.weight"])


@pytest.mark.parametrize("name", ["train_add.py", "train_add_sdxl.py"])
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

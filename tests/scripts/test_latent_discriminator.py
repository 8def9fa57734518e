"""Whole runs with `--discriminator latent`: what they publish, how they are resumed, and what is refused."""

import re

import pytest
import torch
from diffusers import AutoPipelineForText2Image
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_add
import train_add_sd3
import train_add_sdxl
from pipelines import ADDPipeline
from tests.latent import latent_flags, prepare_latent
from tests.scripts.test_resume import assert_same_run, final_state
from tests.support.runs import make_batches
from train_add import iteration
from training.models.families import Family, StableDiffusion, StableDiffusionXL

LORA = ("--use_lora", "--lora_rank", 2)


@pytest.fixture
def script(script):
    """The scripts of UNets: the latent discriminator is for these."""
    if script.network != "unet":
        pytest.skip("the latent discriminator is for UNets")
    return script


def run_latent(script, output_dir, *extra):
    script.module.main(latent_flags(script.world, output_dir, *extra))


@pytest.mark.parametrize(
    "extra",
    [
        ("--use_ema", "--validation_prompts", "one", "--validation_steps", 1, "--report_to", "tensorboard"),
        (*LORA, "--fuse_lora", "--gradient_checkpointing", "--mixed_precision", "bf16", "--distillation_weight", 0),
        ("--discriminator_taps", "down.1", "up", "--discriminator_norm", "mixed_batch", "--r1_gamma", 1e-2,
         "--discriminator_timestep_mean", 0, "--discriminator_timestep_std", 2, "--distillation_space", "pixel"),
    ],
    ids=["full", "lora", "options"],
)  # fmt: skip
def test_runs_to_a_loadable_model(script, tmp_path, extra):
    out = tmp_path / "out"
    run_latent(script, out, *extra)
    stock = AutoPipelineForText2Image.from_pretrained(out)
    assert type(stock) is script.stock
    image = ADDPipeline.from_pretrained(out)("one", height=32, width=32, output_type="np").images[0]
    assert image.std() > 0
    card = (out / "README.md").read_text()
    assert "LADD, [Sauer et al., 2403.12015]" in card
    assert "- discriminator: latent (LADD), on the teacher's features (" in card
    if "--report_to" in extra:
        assert Image.open(out / "validation" / "step-2.png").height > 100
        scalars = set(EventAccumulator(str(out / "logs" / "add")).Reload().Tags()["scalars"])
        assert {"loss/adversarial", "loss/distillation", "discriminator/r1_tap_1",
                "discriminator/accuracy_real", "gradient_norm/discriminator"} <= scalars  # fmt: skip


def test_card_of_a_run_on_pixels_does_not_name_it(script, tmp_path):
    script.run(tmp_path / "out", "--max_train_steps", 1)
    assert "LADD" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("extra", [("--use_ema",), LORA], ids=["full", "lora"])
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(script, tmp_path, extra):
    """With several updates of D, a warm-up that ends in the resumed part, and a schedule of both rates."""
    flags = (*extra, "--discriminator_steps", 2, "--student_timestep_warmup_steps", 3, "--lr_scheduler", "cosine",
             "--lr_warmup_steps", 1, "--max_train_steps", 4, "--checkpointing_steps", 2)  # fmt: skip
    run_latent(script, tmp_path / "straight", *flags)
    run_latent(script, tmp_path / "resumed", *flags)
    newest = tmp_path / "resumed" / "checkpoint-4"
    newest.rename(tmp_path / "taken-away")
    run_latent(script, tmp_path / "resumed", *flags, "--resume_from_checkpoint", "latest")
    resumed, straight = (final_state(tmp_path / name, 4) for name in ("resumed", "straight"))
    assert_same_run(resumed, straight)
    assert straight[1]["position"] == 4 * 2 * 4
    assert straight[0]["discriminator"].keys() == load_file(newest / "discriminator.safetensors").keys()


def test_another_discriminator_on_resume_is_refused(world, tmp_path, capsys):
    out = tmp_path / "out"
    train_add.main(latent_flags(world, out, "--max_train_steps", 1))
    changed = ("--discriminator_steps", 2, "--discriminator_timestep_mean", 0)
    with pytest.raises(SystemExit):
        train_add.main(latent_flags(world, out, "--resume_from_checkpoint", "latest", *changed))
    error = capsys.readouterr().err
    assert "--discriminator_steps: 1 -> 2" in error
    assert "--discriminator_timestep_mean: 1.0 -> 0.0" in error


def test_cached_latents_and_captions_make_the_same_batch(world, sdxl_world, tmp_path):
    """The pooled caption is in the cache, and an embedding of the image is not."""
    for folder, family in ((world, StableDiffusion), (sdxl_world, StableDiffusionXL)):
        cache = tmp_path / family.__name__
        online = prepare_latent(folder, tmp_path / "out", "--center_crop", family=family)
        cached = prepare_latent(folder, tmp_path / "out", "--center_crop", "--cache_dir_latents", cache, family=family)
        a, b = (make_batches(prepared)[0] for prepared in (online, cached))
        assert torch.allclose(a.c, b.c, atol=1e-5)
        assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(a.z0_moments, b.z0_moments))
        assert torch.equal(a.noise.eps_hat, b.noise.eps_hat)
        assert iteration(cached.players, [b])[1] == 0
        assert (cache / "captions" / "c.npy").is_file()
        assert not (cache / "images" / "c.npy").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--discriminator_feature_model", "some/vit"), "--discriminator_feature_model got 'some/vit': .* teacher's"),
        (("--discriminator_input_size", 518), "--discriminator_input_size got 518: .*no images; leave it out, or use"),
        (("--discriminator_image_model", "facebook/dinov2-base"), "--discriminator_image_model got .*no images"),
        (("--discriminator_text_model", "openai/clip"), "--discriminator_text_model got .*own pooled caption"),
        (("--condition_image_at_last_timestep",), "--condition_image_at_last_timestep got True: .*no images"),
        (("--reconstruct_real",), "--reconstruct_real got True: .*encode.x0"),
        (("--no_diffaugment",), "--no_diffaugment got True: latents are not augmented"),
        (("--decode_crop_size", 16), "--decode_crop_size got 16: nothing is decoded"),
        (("--pretrained_tiny_vae_model", "madebyollin/taesd"), "--pretrained_tiny_vae_model got .*nothing is decoded"),
        (("--train_batch_size", 1), "--train_batch_size got 1: a hinge loss on one sample.*collapse"),
        (("--adversarial_weight", 0), "--discriminator got 'latent': --adversarial_weight 0"),
        (("--discriminator_timestep_std", 0), "--discriminator_timestep_std got 0.0: give a number above 0"),
    ],
)  # fmt: skip
def test_flags_that_only_pixels_have_are_refused_before_anything_is_loaded(capsys, tmp_path, extra, message):
    for module in (train_add, train_add_sdxl):
        flags = ("--pretrained_teacher_model", "nobody/nothing", "--dataset_name", "x", "--discriminator", "latent")
        with pytest.raises(SystemExit) as ended:
            module.main([*map(str, (*flags, *extra))])
        assert ended.value.code == 2
        error = capsys.readouterr().err.replace("\n", " ")
        assert re.search(message, error), error


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--discriminator_taps", "mid"), "--discriminator_taps got .'mid'.: only the latent .*add --discriminator"),
        (("--discriminator_timestep_mean", 0), "--discriminator_timestep_mean got 0.0: only the latent"),
        (("--discriminator_steps", 0), "--discriminator_steps got 0: give 1 or more"),
        (("--discriminator_steps", 2, "--adversarial_weight", 0), "--discriminator_steps got 2: .*without a disc"),
        (("--student_timestep_warmup_probabilities", 0, 0, 0, 1), "there is no warm-up.*warmup_steps"),
        (("--student_timestep_warmup_steps", 1, "--student_timestep_warmup_probabilities", 1), "one prob.* of the 4"),
        (("--student_timestep_warmup_steps", 1, "--student_timestep_warmup_probabilities", 1, 1, 0, 0), "sum to 1"),
    ],
)  # fmt: skip
def test_flags_without_effect_are_refused(capsys, extra, message):
    flags = ("--pretrained_teacher_model", "nobody/nothing", "--dataset_name", "x")
    with pytest.raises(SystemExit):
        train_add.main([*map(str, (*flags, *extra))])
    error = capsys.readouterr().err.replace("\n", " ")
    assert re.search(message, error), error


def test_a_teacher_without_a_unet_is_refused(sd3_world, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_add_sd3.main(latent_flags(sd3_world, tmp_path / "out"))
    assert "has no UNet, whose features it is for; use --discriminator pixel" in capsys.readouterr().err


def test_one_sample_per_process_is_enough_where_there_are_several(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = ("--pretrained_teacher_model", "nobody/nothing", "--dataset_name", "x", "--discriminator", "latent",
             "--train_batch_size", "1", "--export_single_file", "a.ckpt")  # fmt: skip
    with pytest.raises(SystemExit):
        train_add.main([*flags])
    assert "--export_single_file got 'a.ckpt'" in capsys.readouterr().err  # refused later than the batch would be


def test_parts_without_attention_and_other_latent_spaces_are_refused_before_any_weight_is_loaded(
    world, sdxl_world, tmp_path, monkeypatch, capsys
):
    for part in ("load_unet", "load_vae", "load_text_encoders"):
        monkeypatch.setattr(Family, part, lambda *a: pytest.fail("weights were loaded"))
    other = ("--pretrained_student_model", world / "teacher", "--pretrained_teacher_model", sdxl_world / "teacher")
    for extra, message in (
        (("--discriminator_taps", "down.0"), r"--discriminator_taps got 'down.0': it names no .*down\.1, mid, up\.0"),
        (
            other,
            "--discriminator got 'latent': --pretrained_teacher_model .* another latent space.*--discriminator pix",
        ),
        ((*other, "--distillation_weight", 0), "--discriminator got 'latent': .* another latent space"),
    ):
        with pytest.raises(SystemExit):
            train_add.main(latent_flags(world, tmp_path / "out", *extra))
        error = capsys.readouterr().err.replace("\n", " ")
        assert re.search(message, error), error

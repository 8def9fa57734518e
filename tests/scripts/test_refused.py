"""Command lines that cannot work: each is refused with its message before anything is loaded."""

import re

import pytest

import train_add
import train_add_sdxl
from tests.support.runs import run
from training.models.families import Family
from training.options import refusals


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
        (("--dataset_name", "json"), "--dataset_name got 'json': this loader reads .*--train_data_dir"),
        (("--train_data_dir", ".", "--dataset_revision", "v1"), "--dataset_revision got 'v1': files in a"),
        (("--train_data_dir", "/nowhere"), r"--train_data_dir got '/nowhere': there is no such folder"),
        (("--dataset_name", "x", "--streaming"), "--streaming got True.*--max_train_steps"),
        (("--dataset_name", "x", "--resolution", 33), "--resolution got 33: give a multiple of 8"),
        (("--dataset_name", "x", "--train_batch_size", 0), "--train_batch_size got 0: give 1 or more"),
        (("--dataset_name", "x", "--learning_rate", 0), "--learning_rate got 0.0: give a number above 0"),
        (("--dataset_name", "x", "--learning_rate", "inf"), "--learning_rate got inf: give a finite number"),
        (("--dataset_name", "x", "--lr_power", "nan"), "--lr_power got nan: give a finite number"),
        (("--dataset_name", "x", "--teacher_guidance_scale", "nan"), "--teacher_guidance_scale got nan: give a finite"),
        (("--dataset_name", "x", "--max_grad_norm", "inf"), "--max_grad_norm got inf: give a finite number; 1e9 never"),
        (("--dataset_name", "x", "--student_timestep_probabilities", "nan", 0, 0, 1), r"got \[nan.*finite"),
        (("--dataset_name", "x", "--use_lora", "--teacher_precision", "bf16", "--mixed_precision", "no"),
         "--teacher_precision got 'bf16': with --use_lora.*--mixed_precision bf16"),
        (("--dataset_name", "x", "--use_lora", "--teacher_precision", "4bit", "--mixed_precision", "no"), "got '4bit'"),
        (("--dataset_name", "x", "--tiny_vae_revision", "v2"), "got .v2..*without --pretrained_tiny_vae_model"),
        (("--dataset_name", "x", "--discriminator_text_model", "none", "--discriminator_text_model_revision", "v2"),
         "--discriminator_text_model_revision got 'v2': it has no effect without --discriminator_text_model"),
        (("--dataset_name", "x", "--ema_decay", 1), r"--ema_decay got 1.0: give a number in \[0, 1\)"),
        (("--dataset_name", "x", "--r1_gamma", -1), "--r1_gamma got -1.0: give 0 or more"),
        (("--dataset_name", "x", "--student_timesteps", 999, 499), "--student_timesteps got .* ascending"),
        (("--dataset_name", "x", "--student_timestep_probabilities", 1), "one probability for each of the 4"),
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
         "--cache_dir_latents got 'c': a streamed data set cannot be cached"),
        (("--dataset_name", "x", "--export_single_file", "a.ckpt"), "--export_single_file got 'a.ckpt': give a file"),
        (("--dataset_name", "x", "--export_single_file", "a.safetensors", "--use_lora"), "add --fuse_lora"),
        (("--dataset_name", "x", "--teacher_precision", "4bit", "--distillation_weight", 0), "4bit.*loads no teacher"),
        (("--dataset_name", "x", "--mixed_precision", "fp16"), "--mixed_precision got 'fp16': fp16 needs a GPU"),
        (("--dataset_name", "x", "--report_to", "comet_ml"), "--report_to got 'comet_ml': it is not installed: pip in"),
        (("--dataset_name", "x", "--report_to", "wandbb"), "--report_to got 'wandbb': choose from tensorboard, wandb"),
        (("--dataset_name", "x", "--enable_xformers_memory_efficient_attention"), "xformers needs a GPU"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("module", [train_add, train_add_sdxl], ids=["sd", "sdxl"])
def test_refused_before_anything_is_loaded(capsys, argv, message, module):
    error = refused(module, capsys, *argv)
    assert re.search(message, error.replace("\n", " ")), error
    assert "hf_secret" not in error


def test_a_token_is_not_given_to_all_trackers_where_one_would_store_it(capsys, monkeypatch):
    monkeypatch.setattr(refusals, "find_spec", lambda name: name)
    flags = ("--dataset_name", "x", "--push_to_hub", "--hub_token", "hf_secret", "--report_to", "all")
    error = refused(train_add, capsys, *flags)
    assert "hf auth login" in error
    assert "hf_secret" not in error


def test_revision_of_an_autoencoder_that_is_not_named(capsys):
    error = refused(train_add_sdxl, capsys, "--dataset_name", "x", "--vae_revision", "v2")
    assert "--vae_revision got 'v2': it has no effect without --pretrained_vae_model_name_or_path" in error


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

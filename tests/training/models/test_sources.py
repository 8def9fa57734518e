"""A model that cannot be used is refused in one line that names the flag, the value and the fix, by every loader."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

import train_add
import train_add_sdxl
from tests.support import tiny_world
from tests.support.runs import parse, prepare_run
from training.encoding.cache import cache_fingerprint
from training.encoding.fingerprint import model_fingerprint
from training.errors import OptionError
from training.models import discriminators, networks
from training.models.families import StableDiffusion, StableDiffusionXL, open_families


def without(folder, part):
    """Delete the weights whose names contain `part` from the one weight file of `folder`. Returns their number."""
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    left = {name: w for name, w in weights.items() if part not in name}
    save_file(left, file, metadata={"format": "pt"})
    return len(weights) - len(left)


@pytest.fixture
def teacher(world, tmp_path):
    """A copy of the teacher's folder, to be damaged."""
    return shutil.copytree(world / "teacher", tmp_path / "teacher")


def message_of(call):
    with pytest.raises(OptionError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("part", "lost", "load"),
    [("text_encoder", ".layers.0.", "load_text_encoders"), ("unet", "mid_block", "load_unet"),
     ("vae", "quant_conv", "load_vae")],
)  # fmt: skip
def test_missing_weights_of_a_family_are_refused(teacher, part, lost, load):
    assert without(teacher / part, lost) > 0
    family = StableDiffusion(str(teacher), flag="pretrained_student_model")
    message = message_of(lambda: getattr(family, load)(torch.float32, torch.device("cpu")))
    assert message.startswith(f"--pretrained_student_model got {str(teacher)!r}: {teacher / part}")
    assert ".safetensors lacks the weights " in message
    assert lost.strip(".") in message
    assert "download the repo again" in message


def test_missing_weights_end_the_script_with_one_line(world, teacher, tmp_path, capsys):
    """The encoder's lost layers were once drawn at random, trained with and published."""
    without(teacher / "text_encoder", ".layers.")
    with pytest.raises(SystemExit) as error:
        train_add.main(tiny_world.flags(world, tmp_path / "out", "--pretrained_teacher_model", teacher))
    assert error.value.code == 2
    assert "lacks the weights" in capsys.readouterr().err
    assert not (tmp_path / "out" / "unet").exists()


def arguments(world, *extra):
    return parse(world, "out", *extra)


CPU = SimpleNamespace(mixed_precision="no", device=torch.device("cpu"))
LOADERS = {
    "discriminator_feature_model": lambda args: discriminators.make_pixel_discriminator(args, 0, CPU),
    "discriminator_text_model": lambda args: networks.load_conditions(args, CPU),
    "discriminator_image_model": lambda args: networks.load_conditions(args, CPU),
    "pretrained_tiny_vae_model": lambda args: networks._tiny_decoder(args, torch.float32, "cpu"),
}


@pytest.mark.parametrize("flag", LOADERS)
@pytest.mark.parametrize("name", ["nobody/nothing", "/no/such/folder", "{world}/data", "{world}/teacher/vae"])
def test_names_that_cannot_be_loaded_are_refused(world, flag, name):
    name = name.format(world=world)
    args = arguments(world, f"--{flag}", name)
    message = message_of(lambda: LOADERS[flag](args))
    assert message.startswith(f"--{flag} got {name!r}: ")
    assert "the Hub id or folder of" in message or "lacks the weights" in message
    if not name.startswith(str(world)):
        assert "no such folder" in message


def test_missing_weights_of_a_tiny_autoencoder_are_refused(world, tmp_path):
    make_tiny_decoder(tmp_path)
    without(tmp_path, "decoder.layers.0")
    args = arguments(world, "--pretrained_tiny_vae_model", tmp_path)
    assert "lacks the weights decoder.layers.0" in message_of(lambda: LOADERS["pretrained_tiny_vae_model"](args))


@pytest.mark.parametrize("flag", LOADERS)
def test_code_of_a_repository_is_never_run(world, tmp_path, monkeypatch, flag):
    """Nor is anybody asked whether it may be: a script that waits for an answer hangs."""
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked at the terminal"))
    monkeypatch.setattr("signal.alarm", lambda *a: pytest.fail("asked at the terminal"))
    config = {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('code of the repository was run')\n")
    args = arguments(world, f"--{flag}", tmp_path)
    assert f"--{flag} got {str(tmp_path)!r}: " in message_of(lambda: LOADERS[flag](args))


def test_unreachable_autoencoder_of_sdxl_is_refused_by_its_own_flag(sdxl_world, tmp_path, capsys):
    argv = tiny_world.flags(sdxl_world, tmp_path / "out", "--pretrained_vae_model_name_or_path", "nobody/nothing")
    with pytest.raises(SystemExit):
        train_add_sdxl.main(argv)
    assert "--pretrained_vae_model_name_or_path got 'nobody/nothing': " in capsys.readouterr().err


REVISIONS = {
    "discriminator_feature_model": "discriminator_feature_model_revision",
    "discriminator_text_model": "discriminator_text_model_revision",
    "discriminator_image_model": "discriminator_image_model_revision",
    "pretrained_tiny_vae_model": "tiny_vae_revision",
}


def hub_cache(folder, source):
    """A Hub cache in which the repo someone/model has the files of `source` at its branch v2, and no other branch."""
    repo, commit = folder / "models--someone--model", "0" * 40
    shutil.copytree(source, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "v2").write_text(commit)
    return folder


def make_tiny_decoder(folder):
    AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
                    num_decoder_blocks=(1, 1)).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.mark.parametrize("flag", LOADERS)
def test_revision_reaches_every_download(world, tmp_path, flag):
    """Of config and weights, tokenizer and image processor: the repo has nothing on another branch."""
    sources = {"discriminator_text_model": world / "clip", "pretrained_tiny_vae_model": tmp_path / "tiny"}
    make_tiny_decoder(tmp_path / "tiny")
    cache = hub_cache(tmp_path / "cache", sources.get(flag, world / "feature_network"))
    flags = (f"--{flag}", "someone/model", "--cache_dir", cache)
    LOADERS[flag](arguments(world, *flags, f"--{REVISIONS[flag]}", "v2"))
    assert "local Hub cache" in message_of(lambda: LOADERS[flag](arguments(world, *flags)))


def test_revision_of_another_autoencoder(sdxl_world, tmp_path):
    cache = hub_cache(tmp_path / "cache", sdxl_world / "teacher" / "vae")
    where = {"cache_dir": str(cache), "vae_name": "someone/model"}
    family = StableDiffusionXL(str(sdxl_world / "teacher"), vae_revision="v2", **where)
    family.load_vae(torch.float32, torch.device("cpu"))
    assert model_fingerprint(*family.vae_place()) == f"someone/model/@{'0' * 40}"
    message = message_of(lambda: StableDiffusionXL(str(sdxl_world / "teacher"), **where))
    assert message.startswith("--pretrained_vae_model_name_or_path got 'someone/model': ")


def test_revisions_of_the_conditions_are_in_the_fingerprint(world, tmp_path):
    cache = hub_cache(tmp_path / "cache", world / "clip")
    flags = ("--discriminator_text_model", "someone/model", "--discriminator_text_model_revision", "v2",
             "--cache_dir", cache)  # fmt: skip
    args = arguments(world, *flags)
    rows = type("Rows", (list,), {"_fingerprint": "rows"})()
    family, _ = open_families(args, StableDiffusion)
    found = cache_fingerprint(args, CPU, rows, {"student": family})
    assert found["c_text"] == f"someone/model/@{'0' * 40}"


def test_adversarial_training_of_another_student_needs_no_teacher(world, v_world, tmp_path):
    """Neither with the cache, which reads the captions of every family that is loaded."""
    flags = ("--pretrained_student_model", world / "teacher", "--pretrained_teacher_model", v_world / "teacher",
             "--distillation_weight", 0, "--cache_dir_latents", tmp_path / "cache", "--center_crop")  # fmt: skip
    prepared = prepare_run(world, tmp_path / "out", *flags)
    assert prepared.networks.teacher is None
    assert prepared.teacher_family is prepared.family

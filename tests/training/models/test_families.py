"""What each family does in its own way, against the stock pipelines."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from tests.runs import options_of
from training.errors import OptionError
from training.models.families import StableDiffusion, StableDiffusionXL, open_families

CAPTIONS = ["a handwritten seven", "a handwritten one, " * 30]


def opened(kind, world):
    family = kind(str(world / "teacher"))
    family.load_text_encoders(torch.float32, torch.device("cpu"))
    return family


def test_sd_captions_are_embedded_as_the_stock_pipeline_does(world):
    stock = StableDiffusionPipeline.from_pretrained(world / "teacher")
    expected, _ = stock.encode_prompt(CAPTIONS, "cpu", 1, False)
    family = opened(StableDiffusion, world)
    condition = family.condition(family.embed(CAPTIONS), {})
    assert torch.equal(condition["encoder_hidden_states"], expected)


def test_sdxl_captions_and_sizes_are_embedded_as_the_stock_pipeline_does(sdxl_world):
    stock = StableDiffusionXLPipeline.from_pretrained(sdxl_world / "teacher")
    hidden, _, pooled, _ = stock.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
    family = opened(StableDiffusionXL, sdxl_world)
    sizes = {
        "original_size": torch.tensor([[40, 50], [32, 32]]),
        "crop_top_left": torch.tensor([[1, 2], [0, 0]]),
        "target_size": torch.tensor([[32, 32], [32, 32]]),
    }
    condition = family.condition(family.embed(CAPTIONS), sizes)
    added = condition["added_cond_kwargs"]
    assert torch.equal(condition["encoder_hidden_states"], hidden)
    assert torch.equal(added["text_embeds"], pooled)
    projection_dim = stock.text_encoder_2.config.projection_dim
    for i, row in enumerate(zip(*(sizes[k].tolist() for k in ("original_size", "crop_top_left", "target_size")))):
        ids = stock._get_add_time_ids(*map(tuple, row), torch.float32, text_encoder_projection_dim=projection_dim)
        assert torch.equal(added["time_ids"][i : i + 1], ids)


def test_sdxl_empty_prompt_is_zeros_where_the_repo_says_so(sdxl_world):
    family = opened(StableDiffusionXL, sdxl_world)
    assert family.index["force_zeros_for_empty_prompt"]
    embedded = family.embed(["", "a handwritten one"])
    for value in embedded.values():
        assert value[0].abs().sum() == 0
        assert value[1].abs().sum() > 0
    family.index = family.index | {"force_zeros_for_empty_prompt": False}
    assert family.embed([""])["text_embeds"].abs().sum() > 0


@pytest.mark.parametrize(
    ("asked", "force_upcast", "expected"),
    [
        (torch.float16, True, torch.bfloat16),
        (torch.float16, False, torch.float16),
        (torch.bfloat16, True, torch.bfloat16),
        (torch.float32, True, torch.float32),
    ],
)
def test_sdxl_autoencoder_that_overflows_in_fp16_is_not_run_in_it(sdxl_world, caplog, asked, force_upcast, expected):
    family = StableDiffusionXL(str(sdxl_world / "teacher"))
    family.vae_config = family.vae_config | {"force_upcast": force_upcast}
    with caplog.at_level("INFO"):
        assert family.vae_dtype(asked, torch.device("cpu")) == expected
    assert ("overflows in fp16" in caplog.text) == (expected != asked)


def test_other_autoencoder_takes_the_place_of_the_repos(sdxl_world, world):
    """--pretrained_vae_model_name_or_path: a repo that is nothing but an autoencoder."""
    family = StableDiffusionXL(str(sdxl_world / "teacher"), vae_name=str(world / "teacher" / "vae"))
    assert family.scaling_factor == 0.18215
    family.load_vae(torch.float32, torch.device("cpu"))
    theirs = StableDiffusionPipeline.from_pretrained(world / "teacher").vae
    assert torch.equal(family.vae.decoder.conv_out.weight, theirs.decoder.conv_out.weight)
    assert family.vae_place() == (str(world / "teacher" / "vae"), "", None, None)


def arguments(*flags):
    return options_of("--pretrained_teacher_model", *map(str, flags))


def test_one_repo_is_one_family(world):
    student, teacher = open_families(arguments(world / "teacher"), StableDiffusion)
    assert student is teacher


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("{xl}",), "--pretrained_teacher_model got .* StableDiffusionXLPipeline.*use train_add_sdxl.py, or name"),
        (("{sd}", "--pretrained_student_model", "{xl}"), "--pretrained_student_model got .*use train_add_sdxl.py"),
        (("{sd}/unet",), "no file named model_index.json.*give the Hub id or folder of a diffusers pipeline"),
        (("nobody/nothing",), "--pretrained_teacher_model got 'nobody/nothing'"),
    ],
)
def test_repos_of_another_kind_are_refused(world, sdxl_world, flags, message):
    names = {"sd": world / "teacher", "xl": sdxl_world / "teacher"}
    with pytest.raises(OptionError, match=message):
        open_families(arguments(*(flag.format(**names) for flag in flags)), StableDiffusion)


def test_pipeline_of_no_family_is_refused(world, tmp_path):
    import json

    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(OptionError, match="holds a FluxPipeline, but only StableDiffusionPipeline, StableDiff"):
        open_families(arguments(tmp_path), StableDiffusion)

"""What each family does in its own way, against the stock pipelines."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from tests.support.runs import options_of
from training.errors import OptionError
from training.models.families import StableDiffusion, StableDiffusion3, StableDiffusionXL, open_families
from training.options.models import SD3Options

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


@pytest.mark.parametrize(("length", "has_t5"), [(256, True), (9, True), (256, False), (9, False)])
def test_sd3_captions_are_embedded_as_the_stock_pipeline_does(sd3_world, length, has_t5):
    """With T5 and with zeros in its place; of any length."""
    none = {} if has_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    stock = StableDiffusion3Pipeline.from_pretrained(sd3_world / "teacher", **none)
    with torch.no_grad():  # as in a call of the pipeline; attention with gradients runs another kernel
        hidden, _, pooled, _ = stock.encode_prompt(
            CAPTIONS, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
    settings = SD3Options(max_sequence_length=length, no_text_encoder_3=not has_t5)
    family = StableDiffusion3(str(sd3_world / "teacher"), settings=settings)
    family.load_text_encoders(torch.float32, torch.device("cpu"))
    condition = family.condition(family.embed(CAPTIONS), {})
    assert condition.keys() == {"encoder_hidden_states", "pooled_projections"}
    assert torch.equal(condition["pooled_projections"], pooled)
    assert hasattr(family, "text_encoder_3") == has_t5
    assert torch.equal(condition["encoder_hidden_states"], hidden)


def test_sd3_repo_without_t5_needs_no_flag(sd3_world, tmp_path):
    shutil.copytree(sd3_world / "teacher", tmp_path / "teacher")
    index = json.loads((tmp_path / "teacher" / "model_index.json").read_text())
    none = {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (tmp_path / "teacher" / "model_index.json").write_text(json.dumps(index | none))
    for part in none:
        shutil.rmtree(tmp_path / "teacher" / part)
    family = opened(StableDiffusion3, tmp_path)
    assert family.embed(CAPTIONS).keys() == {"clip", "pooled"}
    assert family.condition(family.embed(CAPTIONS), {})["encoder_hidden_states"][:, -256:].abs().sum() == 0
    assert family.unloaded().text_encoders.keys() == {"text_encoder", "text_encoder_2"}


def test_sd3_length_of_t5_is_part_of_a_caches_fingerprint(sd3_world):
    """Only with T5: what stands in for it is not cached."""
    name = str(sd3_world / "teacher")
    assert StableDiffusion3(name).embedding_settings == {"max_sequence_length": 256}
    assert StableDiffusion3(name, settings=SD3Options(no_text_encoder_3=True)).embedding_settings == {}


def test_sd3_sizes_are_those_of_the_transformers_patches(sd3_world):
    """At full size 8 pixels a latent and 2 latents a patch, of which there are at most 96 in a row."""
    family = StableDiffusion3(str(sd3_world / "teacher"))
    family.network_config = {"patch_size": 2, "pos_embed_max_size": 96}
    family.vae_config = {"block_out_channels": (128, 256, 512, 512)}
    for resolution in (512, 1024, 1536):
        family.check(arguments(sd3_world / "teacher", "--resolution", resolution))
    for resolution in (1000, 1544, 1552):
        options = arguments(sd3_world / "teacher", "--resolution", resolution)
        with pytest.raises(OptionError, match=rf"--resolution got {resolution}: .* takes multiples of 16 up to 1536"):
            family.check(options)


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
        (("{xl}",), "--pretrained_teacher_model got .* StableDiffusionXLPipeline.*use train_add_sdxl.py, or give"),
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
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(OptionError, match="it is a FluxPipeline, but only StableDiffusionPipeline, StableDiff"):
        open_families(arguments(tmp_path), StableDiffusion)

"""The models that the scripts use by default: their published configs have the published sizes, and our loaders load
networks of those configs, at full size where that is small and otherwise narrower and with fewer layers."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from discriminator import FeatureNetwork, ImageCondition, TextCondition
from discriminator.pretrained import clip_text_config
from examples.tiny.models import make_tokenizer
from tests.support.runs import options_of
from tests.support.tiny_world import CAPTIONS
from tests.training.models.published import BASES, CLIP_G, DINOV2_LARGE, DINOV2_SMALL
from training.models.families import StableDiffusion, StableDiffusionXL, open_families
from training.options.derived import make_schedules

CPU = torch.device("cpu")
TEXT_CLASSES = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}


def make(part, config):
    """The network of a published config."""
    if part == "unet":
        return UNet2DConditionModel.from_config(config)
    if part == "vae":
        return AutoencoderKL.from_config(config)
    return TEXT_CLASSES[config["architectures"][0]](CLIPTextConfig(**config))


def parts(base):
    return [name for name in base if isinstance(base[name], tuple)]


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", BASES)
def test_published_configs_have_the_published_sizes(name):
    for part in parts(BASES[name]):
        config, expected = BASES[name][part]
        with torch.device("meta"):
            assert count(make(part, config)) == expected, part


def narrow(part, config):
    """The same network, narrower; what is not a width stays."""
    if part == "unet":
        heads = config["attention_head_dim"]
        levels = len(config["block_out_channels"])
        layers = config.get("transformer_layers_per_block")
        small = {
            "block_out_channels": [32, 64, 64, 64][:levels],
            "attention_head_dim": heads if isinstance(heads, int) else [1, 2, 4, 4][:levels],
            "cross_attention_dim": 64 if config["cross_attention_dim"] == 2048 else 32,
            "layers_per_block": 1,
        }
        if layers is not None:
            small |= {"transformer_layers_per_block": [1, 1, 2], "addition_time_embed_dim": 8,
                      "projection_class_embeddings_input_dim": 32 + 6 * 8}  # fmt: skip
        return config | small
    if part == "vae":
        return config | {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
    projection = {"projection_dim": 32} if "projection_dim" in config else {}
    return config | projection | {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    }  # fmt: skip


def write_config(folder, config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


def write_base(folder, base):
    """A repository like the published one: its model_index, scheduler config and parts."""
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": base["class"]}))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(base["scheduler"]))
    tokenizer = make_tokenizer(CAPTIONS)
    for part in parts(base):
        config = narrow(part, base[part][0])
        make(part, config).save_pretrained(folder / part)
        write_config(folder / part, config)
        if part.startswith("text_encoder"):
            tokenizer.save_pretrained(folder / part.replace("text_encoder", "tokenizer"))


@pytest.mark.parametrize("name", BASES)
def test_bases_load_and_run(tmp_path, name):
    """All parts by the training's own loaders; then one prediction of the UNet from an encoded caption."""
    base = BASES[name]
    write_base(tmp_path / "base", base)
    options = options_of("--pretrained_teacher_model", tmp_path / "base")
    kind = StableDiffusionXL if base["class"] == "StableDiffusionXLPipeline" else StableDiffusion
    family, _ = open_families(options, kind)
    family.load_text_encoders(torch.float32, CPU)
    family.load_vae(torch.float32, CPU)
    unet = family.load_unet(torch.float32, CPU)

    student, teacher = make_schedules(options, family.scheduler, family.scheduler)
    assert student.prediction_type == teacher.prediction_type == base["prediction_type"]
    # sqrt(alphas_cumprod) at the last index: 0.0683 by the published betas, 0 where the student's is rescaled.
    assert teacher.alphas[-1].item() == pytest.approx(0.06826, abs=1e-5)
    assert student.alphas[-1].item() == pytest.approx(
        0.0 if base["prediction_type"] != "epsilon" else 0.06826, abs=1e-5
    )
    assert family.scaling_factor == family.vae.config.scaling_factor == base["scaling_factor"]

    sizes = {key: torch.full((2, 2), 64) for key in ("original_size", "crop_top_left", "target_size")}
    condition = family.condition(family.embed(CAPTIONS[:2]), sizes)
    with torch.no_grad():
        latents = family.vae.encode(torch.rand(2, 3, 64, 64)).latent_dist.mean
        assert latents.shape == (2, 4, 8, 8)
        assert unet(latents, torch.tensor([999, 499]), **condition).sample.shape == latents.shape


def test_published_clip_g_has_a_projection_to_1024(tmp_path):
    write_config(tmp_path, CLIP_G)
    with torch.device("meta"):
        text = CLIPTextModelWithProjection(clip_text_config(str(tmp_path)))
        whole = CLIPModel(CLIPConfig(**CLIP_G))
    published = {name: w.shape for name, w in whole.state_dict().items() if name.startswith("text_")}
    assert {name: w.shape for name, w in text.state_dict().items()} == published
    assert published["text_projection.weight"] == (1024, 1024)
    assert count(whole) == 1_366_678_273


def test_clip_g_loads(tmp_path):
    small = CLIP_G | {"projection_dim": 48} | {
        tower: narrow(tower, CLIP_G[tower]) for tower in ("text_config", "vision_config")
    }  # fmt: skip
    CLIPModel(CLIPConfig(**small)).save_pretrained(tmp_path)
    write_config(tmp_path, small)
    make_tokenizer(CAPTIONS).save_pretrained(tmp_path)
    condition = TextCondition.from_pretrained(str(tmp_path))
    assert condition(CAPTIONS[:2]).shape == (2, condition.dim) == (2, 48)


def test_dinov2_small_loads_at_full_size(tmp_path):
    """F by default: 22 million parameters."""
    network = Dinov2Model(Dinov2Config(**DINOV2_SMALL))
    assert count(network) == 22_056_576
    network.half().save_pretrained(tmp_path)
    write_config(tmp_path, DINOV2_SMALL)
    loaded = FeatureNetwork.from_pretrained(str(tmp_path))
    assert (loaded.width, loaded.input_size, loaded.num_patches, loaded.tap_blocks) == (384, 224, 256, (2, 5, 8, 11))
    with torch.no_grad():
        assert [f.shape for f in loaded(torch.rand(1, 3, 224, 224))] == [(1, 384, 256)] * 5


def test_dinov2_large_loads(tmp_path):
    """c_img by default: 304 million parameters, here narrower."""
    with torch.device("meta"):
        assert count(Dinov2Model(Dinov2Config(**DINOV2_LARGE))) == 304_368_640
    small = DINOV2_LARGE | {"hidden_size": 64}
    Dinov2Model(Dinov2Config(**small)).save_pretrained(tmp_path)
    write_config(tmp_path, small)
    condition = ImageCondition.from_pretrained(str(tmp_path))
    assert condition(torch.rand(1, 3, 64, 64)).shape == (1, 64)
    assert condition.input_size == 224

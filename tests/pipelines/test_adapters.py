"""Adapters reach our pipelines by the stock loaders and give the stock pipelines' images."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict


def sample(pipe, **kwargs) -> np.ndarray:
    arguments = {"prompt": "a seven", "num_inference_steps": 2, "guidance_scale": 0.0, "output_type": "np"}
    return pipe(generator=torch.Generator().manual_seed(0), **arguments | kwargs).images


def image_arguments(mode: str) -> dict:
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    return {} if mode == "text" else {"image": picture, "strength": 0.5}


@pytest.fixture
def fresh(make_pipeline, components):
    """A pipeline with a UNet of its own, for adapters to change."""
    return lambda kind="ours": make_pipeline(kind, unet=copy.deepcopy(components["unet"]))


@pytest.fixture(scope="module")
def lora(family, components, tmp_path_factory) -> str:
    """A random LoRA of rank 2 and alpha 3, saved by the stock pipeline."""
    torch.manual_seed(1)
    unet = copy.deepcopy(components["unet"])
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False)
    unet.add_adapter(config)
    layers = get_peft_model_state_dict(unet)
    folder = str(tmp_path_factory.mktemp("lora"))
    family.stock["text"].save_lora_weights(folder, unet_lora_layers=layers, unet_lora_adapter_metadata=config.to_dict())
    return folder


def lora_targets(unet) -> set[str]:
    return {name.split(".")[-2] for name, _ in unet.named_modules() if name.endswith("lora_A")}


@pytest.mark.parametrize("mode", ["text", "image"])
def test_lora(fresh, lora, mode):
    """A LoRA saved by stock gives stock's image here, changes it, obeys its scale, fuses and comes off again."""
    pipe = fresh()
    other = fresh(mode)
    bare = sample(pipe, **image_arguments(mode))
    for p in (pipe, other):
        p.load_lora_weights(lora)
    assert {"to_q", "to_v", "conv1"} == lora_targets(pipe.unet)
    with_lora = sample(pipe, **image_arguments(mode))
    np.testing.assert_array_equal(with_lora, sample(other, **image_arguments(mode)))
    assert np.abs(with_lora - bare).max() > 0.01

    half = {"cross_attention_kwargs": {"scale": 0.5}} | image_arguments(mode)
    np.testing.assert_array_equal(sample(pipe, **half), sample(other, **half))
    off = {"cross_attention_kwargs": {"scale": 0.0}} | image_arguments(mode)
    np.testing.assert_allclose(sample(pipe, **off), bare, atol=1e-5)

    pipe.fuse_lora()
    np.testing.assert_allclose(sample(pipe, **image_arguments(mode)), with_lora, atol=1e-3)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    np.testing.assert_allclose(sample(pipe, **image_arguments(mode)), bare, atol=1e-3)


@pytest.mark.parametrize("mode", ["text", "image"])
def test_ip_adapter(fresh, family, components, mode):
    """An IP-Adapter and its image embeddings give stock's image; other embeddings another one."""
    generator = torch.Generator().manual_seed(2)
    unet, width, clip_width, tokens = components["unet"], family.embed_width, 16, 4
    attention = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    image_proj = {
        "proj.weight": torch.randn(tokens * width, clip_width, generator=generator),
        "proj.bias": torch.zeros(tokens * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    keys = [f"{2 * i + 1}.to_{kv}_ip.weight" for i in range(len(attention)) for kv in "kv"]
    ip_adapter = {key: torch.randn(32, width, generator=generator) for key in keys}
    embeds = [torch.randn(1, 1, clip_width, generator=generator)]
    other = fresh(mode)
    pipe = fresh()
    for p in (pipe, other):
        weights = {"image_proj": dict(image_proj), "ip_adapter": dict(ip_adapter)}
        p.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
    arguments = {"ip_adapter_image_embeds": embeds} | image_arguments(mode)
    ours = sample(pipe, **arguments)
    np.testing.assert_array_equal(ours, sample(other, **arguments))
    assert np.abs(ours - sample(pipe, **arguments | {"ip_adapter_image_embeds": [-embeds[0]]})).max() > 1e-3

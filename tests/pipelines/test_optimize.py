"""`optimize`: the same image for the same seed, sooner, and nothing of it where a pipeline is saved or adapted."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict

from tests.pipelines.test_published_layout import digests

ONLY = {"compile": False, "channels_last": False, "fuse_qkv": False, "cache_prompts": False}
CHOICES = {
    "channels_last": {"channels_last": True},
    "fuse_qkv": {"fuse_qkv": True},
    "cache_prompts": {"cache_prompts": True},
    "together": {"channels_last": True, "fuse_qkv": True, "cache_prompts": True},
}
TRACED = {"compile": {"backend": "eager"}}  # traced and replayed, without waiting for generated code
ALL = ONLY | CHOICES["together"] | TRACED


def sample(pipe, seed: int = 0, prompt="a seven", **kwargs) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, num_inference_steps=2, generator=generator, output_type="np", **kwargs).images


def arguments(mode: str) -> dict:
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    mask = {"mask_image": (picture[:, :1] > 0.5).float()} if mode == "inpaint" else {}
    return {} if mode == "text" else {"image": picture, "strength": 0.5, **mask}


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@pytest.fixture
def fresh(family, components, make_pipeline):
    """A pipeline with networks of its own."""
    models = ("unet", "vae", *family.text_encoders)
    return lambda: make_pipeline(**{name: copy.deepcopy(components[name]) for name in models}, **family.tokenizers())


@pytest.fixture
def passes(request):
    """passes(module) -> a list that grows with each of its forward passes."""

    def watch(module) -> list:
        found = []
        hook = module.register_forward_pre_hook(lambda *_: found.append(1))
        request.addfinalizer(hook.remove)
        return found

    return watch


@pytest.mark.parametrize("choice", CHOICES)
def test_same_seed_same_image(fresh, choice):
    """Each part and the three together, in the three kinds of call, with batches and several images a prompt."""
    pipe, plain = fresh(), fresh()
    assert pipe.optimize(**ONLY | CHOICES[choice]) is pipe
    for mode in ("text", "image", "inpaint"):
        for _ in range(2):
            same(sample(pipe, **arguments(mode)), sample(plain, **arguments(mode)))
    batch = {"prompt": ["a seven", "an eight"], "num_images_per_prompt": 2}
    same(sample(pipe, **batch), sample(plain, **batch))


def test_traced_modules_draw_the_same_image(fresh):
    """Compiling with all the rest: first and later calls, and one of another size, which is traced again."""
    pipe, plain = fresh().optimize(**ALL), fresh()
    for height in (32, 32, 48):
        same(sample(pipe, height=height, width=32), sample(plain, height=height, width=32))


def test_generated_code_draws_the_same_image(make_pipeline, fresh, tmp_path):
    """The default backend, on a small decoder, for it takes its time; the weights keep their names."""
    pipe, tiny = fresh(), make_tiny_vae(4)
    expected = sample(make_pipeline(vae=tiny))
    pipe.unet.compile(backend="eager")  # what is compiled already is left alone
    as_before = pipe.unet._compiled_call_impl
    pipe.optimize(**ONLY | {"compile": True}, tiny_vae=copy.deepcopy(tiny))
    assert pipe.unet._compiled_call_impl is as_before
    assert pipe.vae.decoder._compiled_call_impl is not None
    pipe.unet._compiled_call_impl = None
    same(sample(pipe), expected)
    pipe.save_pretrained(tmp_path)
    same(sample(type(pipe).from_pretrained(tmp_path)), expected)


def test_saving_shows_nothing_of_it(family, fresh, tmp_path, complaints):
    """An optimized pipeline saves the same files byte for byte, and stock diffusers loads them."""
    fresh().save_pretrained(tmp_path / "plain")
    pipe = fresh().optimize(**ALL)
    pipe.save_pretrained(tmp_path / "optimized")
    assert digests(tmp_path / "optimized") == digests(tmp_path / "plain")
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "optimized")) is family.stock["text"]
    assert complaints == []


def test_its_parts_are_really_on(fresh):
    """Fused products, the memory layout and compiled calls, on the UNet and on the autoencoder."""
    pipe = fresh().optimize(**ALL)
    for network in (pipe.unet, pipe.vae):
        attention = [m for m in network.modules() if hasattr(m, "fused_projections")]
        assert attention
        assert all(m.fused_projections for m in attention)
        convolutions = [m.weight for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size[0] > 1]
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)
    assert pipe.unet._compiled_call_impl
    assert pipe.vae.decoder._compiled_call_impl
    plain = fresh().optimize(**ONLY)
    assert "encode_prompt" not in vars(plain)
    assert plain.unet._compiled_call_impl is None
    assert not any(getattr(m, "fused_projections", False) for m in plain.unet.modules())


def make_tiny_vae(width: int) -> AutoencoderTiny:
    """4 pixels a latent, as the autoencoder it stands in for."""
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 3,
        decoder_block_out_channels=(width,) * 3,
        num_encoder_blocks=(1,) * 3,
        num_decoder_blocks=(1,) * 3,
    )


def test_tiny_vae(family, fresh, tmp_path):
    """It decodes in the autoencoder's place, from a folder or as it is, and is saved; another size is refused."""
    tiny = make_tiny_vae(8)
    tiny.save_pretrained(tmp_path / "tiny")
    pipe = fresh().optimize(**ONLY | CHOICES["together"], tiny_vae=str(tmp_path / "tiny"))
    latents = pipe("a seven", generator=torch.Generator().manual_seed(0), output_type="latent").images
    expected = (tiny.decode(latents).sample.detach() / 2 + 0.5).clamp(0, 1)
    image = pipe("a seven", generator=torch.Generator().manual_seed(0), output_type="pt").images
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-4)
    assert sample(pipe, **arguments("image")).shape == (1, 32, 32, 3)
    pipe.save_pretrained(tmp_path / "saved")
    assert isinstance(family.ours.from_pretrained(tmp_path / "saved").vae, AutoencoderTiny)
    assert fresh().optimize(**ONLY, tiny_vae=tiny).vae is tiny
    with pytest.raises(ValueError, match=r"tiny_vae has a scale factor of 8 and 4 latent channels, .* vae has 4 and 4"):
        fresh().optimize(tiny_vae=AutoencoderTiny())


def test_prompts_are_encoded_once(fresh, passes, monkeypatch):
    """Another seed, image-to-image and inpainting reuse a prompt; the least recent one goes first."""
    monkeypatch.setattr("pipelines.optimize.CACHED_PROMPTS", 2)
    pipe, plain = fresh().optimize(**ONLY | CHOICES["cache_prompts"]), fresh()
    encoded = passes(pipe.text_encoder)
    for seed, mode in enumerate(("text", "text", "image", "inpaint")):
        same(sample(pipe, seed, **arguments(mode)), sample(plain, seed, **arguments(mode)))
    assert len(encoded) == 1
    for prompt, count in (("an eight", 2), ("a seven", 2), ("eight", 3), ("a seven", 3), ("an eight", 4)):
        same(sample(pipe, prompt=prompt), sample(plain, prompt=prompt))
        assert len(encoded) == count
    sample(pipe, prompt=["a seven", "an eight"], num_images_per_prompt=2)
    assert len(encoded) == 5
    pipe.optimize(**ONLY)
    sample(pipe)
    assert len(encoded) == 6


def test_a_prompt_is_encoded_again_where_the_answer_may_differ(fresh, passes):
    """After a weight was written to, an encoder replaced or adapted; and no caller can spoil the answers."""
    pipe = fresh().optimize(**ONLY | CHOICES["cache_prompts"])
    before = sample(pipe)
    arguments = {"device": torch.device("cpu"), "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    for answer in pipe.encode_prompt(prompt="a seven", **arguments):
        if answer is not None:
            answer.zero_()
    same(sample(pipe), before)
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight.mul_(3)
    changed = sample(pipe)
    assert np.abs(changed - before).max() > 1e-3
    tripled, pipe.text_encoder = pipe.text_encoder, fresh().text_encoder
    same(sample(pipe), before)
    pipe.text_encoder = tripled
    same(sample(pipe), changed)
    pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]), "one")
    encoded = passes(pipe.text_encoder)
    sample(pipe)
    sample(pipe)
    assert len(encoded) == 2


def test_offloading_keeps_the_cache(fresh, passes):
    """Model offload and the cache together: the encoder need not even be fetched."""
    pipe, plain = fresh().optimize(**ONLY | CHOICES["cache_prompts"]), fresh()
    pipe.enable_model_cpu_offload(device="cpu")
    encoded = passes(pipe.text_encoder)
    for seed in range(2):
        same(sample(pipe, seed), sample(plain, seed))
    assert len(encoded) == 1


def random_lora(family, unet, folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    unet = copy.deepcopy(unet)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    unet.add_adapter(config)
    family.stock["text"].save_lora_weights(
        folder, unet_lora_layers=get_peft_model_state_dict(unet), unet_lora_adapter_metadata=config.to_dict()
    )
    return str(folder)


def test_adapters_and_optimize_in_either_order(family, fresh, components, tmp_path):
    """Two stacked adapters with weights of their own: stock's image, before `optimize`, after it and without it."""
    files = [random_lora(family, components["unet"], tmp_path / str(i), seed=i) for i in range(2)]

    def stack(pipe):
        for name, file in zip("ab", files):
            pipe.load_lora_weights(file, adapter_name=name)
        pipe.set_adapters(["a", "b"], adapter_weights=[0.7, 0.4])
        return pipe

    plain = stack(fresh())
    stock = stack(family.stock["text"].from_pipe(fresh()))
    stock.set_progress_bar_config(disable=True)
    bare, both = sample(fresh()), sample(plain)
    np.testing.assert_array_equal(both, sample(stock, guidance_scale=0.0))
    assert np.abs(both - bare).max() > 1e-3
    for name in "ab":  # neither alone is the stack
        plain.set_adapters([name], adapter_weights=[0.7 if name == "a" else 0.4])
        assert np.abs(sample(plain) - both).max() > 1e-4

    choice = ONLY | CHOICES["together"]
    for pipe in (stack(fresh()).optimize(**choice), stack(fresh().optimize(**choice))):
        same(sample(pipe), both)
        pipe.disable_lora()
        same(sample(pipe), bare)
        pipe.enable_lora()
        pipe.fuse_lora(adapter_names=["a", "b"])
        np.testing.assert_allclose(sample(pipe), both, rtol=0, atol=1e-3)
    if "text_encoder_2" not in pipe.components:  # tracing takes its time, and the families' UNets differ little
        same(sample(stack(fresh().optimize(**choice | TRACED))), both)


def test_ip_adapter_survives_it(fresh):
    """Attention that something else has changed is not fused: its processors would be lost."""
    pipe = fresh()
    processors = pipe.unet.attn_processors

    class Other(type(next(iter(processors.values())))):
        pass

    pipe.unet.set_attn_processor(Other())
    pipe.optimize(**ONLY | {"fuse_qkv": True})
    assert {type(p) for p in pipe.unet.attn_processors.values()} == {Other}

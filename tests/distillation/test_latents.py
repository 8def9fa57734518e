"""Latent spaces: scaling, precision, windows with a halo, and telling two spaces apart."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from distillation.latents import LatentSpace, Window
from examples.tiny.models import make_vae


def make_space(**kwargs):
    """Three levels, so 4 pixels a latent, and attention in the middle as Stable Diffusion's has it."""
    torch.manual_seed(0)
    return LatentSpace(make_vae((8, 16, 16)).eval().requires_grad_(False), **kwargs)


def test_latents_are_the_stock_pipelines():
    """Scaling and shift as `StableDiffusionPipeline` applies them, both ways."""
    space = make_space()
    space.vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    mean, std = space.moments(x)
    posterior = space.vae.encode(x).latent_dist
    assert torch.allclose(mean, (posterior.mean - 0.25) * 0.5)
    assert torch.allclose(std, posterior.std * 0.5)
    assert torch.allclose(space.decode(mean), space.vae.decode(posterior.mean).sample, atol=1e-5)
    assert not mean.requires_grad


def test_autoencoder_keeps_its_precision_under_autocast():
    """SDXL's overflows in fp16: the run's autocast must not reach it."""
    space, seen = make_space(), []
    space.vae.decoder.conv_out.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        space.decode(torch.randn(1, 4, 8, 8))
    assert seen == [torch.float32]


def test_half_precision_autoencoder_gives_float32():
    space = make_space()
    space.vae.to(torch.bfloat16)
    assert space.moments(torch.zeros(1, 3, 32, 32))[0].dtype == torch.float32
    assert space.decode(torch.zeros(1, 4, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize(("uniform", "corner"), [((0.0, 0.0), (0, 0)), ((0.999, 0.999), (5, 3)), ((0.5, 0.0), (3, 0))])
def test_windows_are_drawn_evenly_over_all_places(uniform, corner):
    """A grid of 8 x 6 has 6 x 4 places for a window of 3."""
    window = Window.draw((8, 6), 3, uniform)
    assert (window.top, window.left, window.size) == (*corner, 3)


def test_window_of_pixels_is_the_window_of_latents():
    images = torch.arange(64.0).reshape(1, 1, 8, 8)
    part = Window(1, 2, 2).of_pixels(images, factor=2)
    assert torch.equal(part, images[..., 2:6, 4:8])


@pytest.mark.parametrize("corner", [(0, 0), (10, 10), (20, 3), (20, 20)])
def test_decoded_window_lies_where_the_full_decode_has_it(corner):
    """At the image's corners the halo ends where the image does; the place must not shift by that."""
    space = make_space(halo=8)
    z = torch.randn(1, 4, 32, 32)
    window = Window(*corner, 12)
    full, part = window.of_pixels(space.decode(z), space.factor), space.decode(z, window)
    assert part.shape == (1, 3, 48, 48)
    assert torch.corrcoef(torch.stack([full.flatten(), part.flatten()]))[0, 1] > 0.99


def test_gradient_of_a_window_is_close_to_that_of_the_full_decode():
    """And closer with a larger halo. Outside of window and halo there is none."""
    window, cosines = Window(10, 10, 12), []
    torch.manual_seed(1)
    z = torch.randn(2, 4, 32, 32, requires_grad=True)
    target = torch.randn(2, 3, 48, 48)

    def gradient(pixels):
        return torch.autograd.grad((pixels - target).square().mean(), z)[0]

    for halo in (0, 2, 8):
        space = make_space(halo=halo)
        of_crop = gradient(space.decode(z, window))
        of_full = gradient(window.of_pixels(space.decode(z), space.factor))
        inside, reference = (window.of_pixels(g, 1).flatten() for g in (of_crop, of_full))
        cosines.append(torch.cosine_similarity(inside, reference, dim=0).item())
        assert of_crop[..., : 10 - halo, :].abs().sum() == 0
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.98, cosines


def test_tiny_decoder_takes_the_same_latents():
    """AutoencoderTiny has no scaling of its own: it is given latents as the UNet sees them."""
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).eval()  # fmt: skip
    z = torch.randn(1, 4, 8, 8)
    assert torch.allclose(make_space(decoder=tiny).decode(z), tiny.decode(z).sample)


def changed(space, **config):
    vae = copy.deepcopy(space.vae)
    vae.register_to_config(**config)
    return LatentSpace(vae)


def test_spaces_are_told_apart_by_encoder_and_scaling_alone():
    """Stable Diffusion's later autoencoders have another decoder and the same latents."""
    space = make_space()
    other_decoder = copy.deepcopy(space.vae)
    torch.nn.init.normal_(other_decoder.decoder.conv_out.weight)
    half = copy.deepcopy(space.vae).to(torch.bfloat16)
    other_moments = copy.deepcopy(space.vae)
    torch.nn.init.normal_(other_moments.quant_conv.weight)
    without_quant_conv = copy.deepcopy(space.vae)
    without_quant_conv.quant_conv = None
    assert space.is_same_space(LatentSpace(other_decoder))
    assert not space.is_same_space(LatentSpace(other_moments))
    assert not space.is_same_space(LatentSpace(without_quant_conv))
    assert space.is_same_space(LatentSpace(half))
    assert not space.is_same_space(changed(space, scaling_factor=0.13025))
    assert not space.is_same_space(changed(space, shift_factor=0.1))
    torch.manual_seed(7)
    assert not space.is_same_space(LatentSpace(make_vae((8, 16, 16))))
    assert not space.is_same_space(LatentSpace(make_vae((8, 16))))
    assert isinstance(space.vae, AutoencoderKL)

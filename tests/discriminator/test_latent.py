"""The latent discriminator's heads: against a second implementation and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from discriminator import LatentDiscriminator, UNetFeatures
from discriminator.heads import Head
from discriminator.latent import NOISE_LEVEL_DIM, LatentHeads, noise_level_embedding
from examples.tiny import models

WIDTHS, SIZES = (16, 32), ((6, 4), (3, 2))


def maps(batch=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, width, *size, generator=g) for width, size in zip(WIDTHS, SIZES))


def condition(batch=4, dim=8):
    return F.normalize(torch.randn(batch, dim, generator=torch.Generator().manual_seed(5)), dim=1)


def reference(head, x, c):
    """A head in eval mode, written out: 1x1, 3x3 with zeros around the map, residual, 64 channels, projection."""

    def block(block, x, padding):
        x = F.conv2d(x, block.conv.weight, padding=padding)
        mean, var = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
        x = (x - mean) / (var + 1e-5).sqrt() * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
        return torch.where(x > 0, x, 0.2 * x)

    x = block(head.pointwise, x, 0)
    x = (block(head.neighborhood, x, 1) + x) / math.sqrt(2)
    out = F.conv2d(x, head.classifier.weight, head.classifier.bias)
    w = c @ head.projection.weight.T + head.projection.bias
    return (out * w[:, :, None, None]).sum(dim=1).flatten(1) / 8


def test_head_on_a_map_is_the_written_out_one():
    torch.manual_seed(0)
    heads = LatentHeads(WIDTHS, 8).eval()
    logits = heads(maps(), condition())
    assert [tuple(of_head.shape) for of_head in logits] == [(4, 24), (4, 6)]
    for head, x, found in zip(heads.heads, maps(), logits):
        assert torch.allclose(found, reference(head, x, condition()), atol=1e-5)


def test_heads_are_float32_under_autocast_and_refuse_another_number_of_taps():
    heads = LatentHeads(WIDTHS, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert {of_head.dtype for of_head in heads(maps(), condition())} == {torch.float32}
    with pytest.raises(ValueError, match="made for 2 feature tensors and a condition of size 8"):
        heads(maps()[:1], condition())


def test_a_map_of_one_place_has_a_logit():
    """The deepest taps of a small image."""
    assert Head(16, 8, dims=2)(torch.randn(8, 16, 1, 1), condition(8)).shape == (8, 1)


def test_noise_level_is_a_unit_vector_of_cosines_and_sines():
    t = torch.tensor([0, 1, 500, 999])
    found = noise_level_embedding(t)
    assert found.shape == (4, NOISE_LEVEL_DIM)
    assert torch.allclose(found.norm(dim=1), torch.ones(4), atol=1e-6)
    half = NOISE_LEVEL_DIM // 2
    for row, step in zip(found, t.tolist()):
        for i in (0, 1, 17, half - 1):
            angle = step / 10_000 ** (i / half)
            assert row[i].item() == pytest.approx(math.cos(angle) / math.sqrt(half), abs=1e-5)
            assert row[half + i].item() == pytest.approx(math.sin(angle) / math.sqrt(half), abs=1e-5)


def make_discriminator(norm="virtual_batch", caption_dim=8):
    torch.manual_seed(0)
    unet = models.make_unet((16, 32), cross_attention_dim=32).eval().requires_grad_(False)
    features = UNetFeatures(unet, unet, ("down_blocks.1.attentions.0", "mid_block.attentions.0"))
    return LatentDiscriminator(features, caption_dim, norm)


def test_only_the_heads_belong_to_the_discriminator():
    """The UNet is the teacher's: neither saved with the heads, nor moved or trained by them."""
    discriminator = make_discriminator()
    assert all(name.startswith("heads.") for name in discriminator.state_dict())
    assert all(p.requires_grad for p in discriminator.parameters())


def test_heads_are_told_the_noise_level_and_the_caption():
    discriminator = make_discriminator()
    t = torch.tensor([3, 700, 3, 3])
    found = discriminator.condition(condition(), t)
    assert torch.equal(found, torch.cat([noise_level_embedding(t), condition()], dim=1))
    assert torch.equal(make_discriminator(caption_dim=0).condition(None, t), noise_level_embedding(t))
    features = tuple(torch.randn(4, 32, 4, 4, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    discriminator.heads.eval()
    a = discriminator.heads(features, found)
    b = discriminator.heads(features, discriminator.condition(condition(), torch.tensor([3, 100, 3, 3])))
    for of_a, of_b in zip(a, b):
        assert torch.equal(of_a[[0, 2, 3]], of_b[[0, 2, 3]])
        assert not torch.equal(of_a[1], of_b[1])


def test_mixed_batches_hold_real_and_generated_maps_side_by_side():
    discriminator = make_discriminator("mixed_batch")
    discriminator.heads.eval()
    real, fake = (tuple(torch.randn(4, 32, 4, 4, generator=torch.Generator().manual_seed(k)) for k in s)
                  for s in ((0, 1), (2, 3)))  # fmt: skip
    c = discriminator.condition(condition(), torch.tensor([1, 2, 3, 4]))
    logits_real, logits_fake = discriminator.logits(discriminator.heads, real, fake, c)
    pairs = tuple(torch.stack([r, f], 1).reshape(8, 32, 4, 4) for r, f in zip(real, fake))
    expected = discriminator.heads(pairs, torch.stack([c, c], 1).reshape(8, -1))
    for k in (0, 1):
        assert torch.equal(logits_real[k], expected[k].view(4, 2, -1)[:, 0])
        assert torch.equal(logits_fake[k], expected[k].view(4, 2, -1)[:, 1])
    again = discriminator.logits_of_fake(discriminator.heads, real, fake, c)
    assert all(torch.equal(a, b) for a, b in zip(again, logits_fake))

"""The discriminator as the training loop uses it."""

import pytest
import torch

from discriminator import AUGMENT_NUMBERS, NORMS, Discriminator, FeatureNetwork, diff_augment, resize
from examples.tiny.models import make_dinov2

CONDITION_DIM = 6


def make(augment=True, condition_dim=CONDITION_DIM):
    torch.manual_seed(0)
    return Discriminator(FeatureNetwork(make_dinov2(16, 4)), condition_dim, augment)


def images(batch=4, side=32, seed=0):
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


CROP, RESIZE = (0.0, 0.3, 0.8), (0.5, 0.3, 0.8)


def uniform(batch=4, seed=0):
    return torch.rand(batch, AUGMENT_NUMBERS, generator=torch.Generator().manual_seed(seed))


def condition(batch=4):
    return torch.nn.functional.normalize(torch.randn(batch, CONDITION_DIM), dim=1)


def test_order_of_operations():
    """At F's own size: augmentation on [-1, 1], then [0, 1], then F. Without augmentation: F alone."""
    discriminator, x = make(), images()
    expected = discriminator.feature_network((diff_augment(x, uniform()) + 1) / 2)
    for a, b in zip(discriminator.features(x, uniform(), CROP), expected):
        assert torch.equal(a, b)
    discriminator.augment = False
    for a, b in zip(discriminator.features(x, uniform(), CROP), discriminator.feature_network((x + 1) / 2)):
        assert torch.equal(a, b)


def test_larger_images_are_cropped_or_resized():
    """At twice F's size one side of the coin shows F a window, the other the whole image."""
    discriminator, x = make(augment=False), images(2, 64)
    window = x[..., 9:41, 26:58]  # 0.3 and 0.8 of the 33 places
    for crop, seen in ((CROP, window), (RESIZE, resize(x, 32))):
        for a, b in zip(discriminator.features(x, uniform(2), crop), discriminator.feature_network((seen + 1) / 2)):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("side", [16, 32, 48])
def test_shapes_and_repeatability(side):
    """Any size in, K features and (B, K, N) logits out, the same again from the same numbers."""
    discriminator, x = make(), images(side=side)
    features = discriminator.features(x, uniform(), CROP)
    assert [f.shape for f in features] == [(4, 16, 64)] * 5
    assert discriminator.heads(features, condition()).shape == (4, 5, 64)
    again = discriminator.features(x, uniform(), CROP)
    assert all(torch.equal(a, b) for a, b in zip(features, again))


def test_student_step_reaches_images_and_leaves_the_discriminator():
    """The student's gradient passes heads, F, crop and augmentation; frozen heads in eval mode stay as they were."""
    discriminator = make()
    discriminator.heads.eval().requires_grad_(False)
    before = {k: v.clone() for k, v in discriminator.state_dict().items()}
    x = images(side=48).requires_grad_()
    logits = discriminator.heads(discriminator.features(x, uniform(), CROP), condition())
    (-logits.sum(1).mean()).backward()
    assert x.grad.isfinite().all()
    assert (x.grad.abs().sum(1) > 0).float().mean() > 0.3  # a crop leaves pixels out
    assert all(p.grad is None for p in discriminator.parameters())
    assert all(torch.equal(before[k], v) for k, v in discriminator.state_dict().items())


def test_discriminator_step_with_r1_on_head_inputs():
    """Hinge and R1 in one backward: every head parameter gets a gradient, F none, and training separates the two."""
    discriminator = make(augment=False, condition_dim=0)
    optimizer = torch.optim.Adam(discriminator.heads.parameters(), lr=2e-3, betas=(0.0, 0.99))
    real, fake = images(8), resize(images(8, side=4, seed=1), 32)  # detailed and smooth
    gaps = []
    for _ in range(25):
        with torch.no_grad():
            real_features = discriminator.features(real, uniform(8), CROP)
            fake_features = discriminator.features(fake, uniform(8), CROP)
        leaves = tuple(f.detach().requires_grad_() for f in real_features)
        real_logits = discriminator.heads(leaves)
        fake_logits = discriminator.heads(fake_features)
        gradients = torch.autograd.grad(real_logits.sum(), leaves, create_graph=True)
        r1 = sum(g.square().sum((1, 2)).mean() for g in gradients)
        hinge = torch.relu(1 - real_logits) + torch.relu(1 + fake_logits)
        optimizer.zero_grad()
        (hinge.sum(1).mean() + 1e-5 * r1).backward()
        optimizer.step()
        gaps.append(float((real_logits - fake_logits).detach().mean()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in discriminator.heads.parameters())
    assert all(p.grad is None for p in discriminator.feature_network.parameters())
    assert abs(gaps[0]) < 0.05
    assert gaps[-1] > 0.12


def test_autocast_lowers_f_but_not_the_heads():
    """Under bf16 autocast F computes in bf16, so its features move a little, and the logits stay float32."""
    discriminator, x = make(augment=False), images()
    exact = discriminator.features(x, uniform(), CROP)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = discriminator.features(x.bfloat16(), uniform(), CROP)
        logits = discriminator.heads(features, condition())
    assert logits.dtype == torch.float32
    error = (features[-1].float() - exact[-1]).abs().max()
    assert 0 < error < 0.1 * exact[-1].abs().max()


@pytest.mark.parametrize("norm", NORMS)
def test_judge_gives_each_image_its_own_logits(norm):
    """Pairing and unpairing loses no order: logit i belongs to image i and to condition i."""
    torch.manual_seed(0)
    discriminator = Discriminator(FeatureNetwork(make_dinov2(16, 4)), CONDITION_DIM, norm=norm)
    heads = discriminator.heads.eval()  # or each forward would move the spectral norm
    real, fake = (discriminator.features(images(16, seed=k), uniform(16), CROP) for k in (0, 1))
    c = condition(16)
    both = discriminator.logits(heads, real, fake, c)
    assert [j.shape for j in both] == [(16, 5, 64)] * 2
    assert torch.equal(discriminator.logits_of_fake(heads, real, fake, c), both[1])
    if norm == "mixed_batch":  # groups of four pairs: the first must not feel the ninth
        part = discriminator.logits(heads, *(tuple(f[:4] for f in features) for features in (real, fake)), c[:4])
        for whole, first in zip(both, part):
            torch.testing.assert_close(whole[:4], first)
        swapped = discriminator.logits(heads, fake, real, c)
        torch.testing.assert_close(swapped[1], both[0])
    else:
        assert torch.equal(both[0], heads(real, c))
        assert torch.equal(both[1], heads(fake, c))


@pytest.mark.parametrize("norm", ["virtual_batch", "mixed_batch"])
def test_only_mixed_groups_show_a_shift_of_all_generated_samples(norm):
    """A constant added to every generated feature: batch norm over generated samples alone takes it away."""
    torch.manual_seed(0)
    discriminator = Discriminator(FeatureNetwork(make_dinov2(16, 4)), 0, norm=norm)
    heads = discriminator.heads.eval()
    real, fake = (discriminator.features(images(8, seed=k), uniform(8), CROP) for k in (0, 1))
    shifted = tuple(f + 3.0 for f in fake)
    moved = discriminator.logits_of_fake(heads, real, shifted, None) - discriminator.logits_of_fake(
        heads, real, fake, None
    )
    assert (moved.abs().max() > 0.1) == (norm == "mixed_batch")


def test_heads_that_mix_are_still_left_alone_by_the_students_step():
    """The gradient reaches the generated features through the groups, and only them."""
    torch.manual_seed(0)
    discriminator = Discriminator(FeatureNetwork(make_dinov2(16, 4)), 0, norm="mixed_batch")
    real, fake = (discriminator.features(images(8, seed=k), uniform(8), CROP) for k in (0, 1))
    fake = tuple(f.detach().requires_grad_() for f in fake)
    discriminator.logits_of_fake(discriminator.heads, real, fake, None).sum().backward()
    assert all(f.grad.abs().sum() > 0 for f in fake)
    assert not any(f.requires_grad for f in real)

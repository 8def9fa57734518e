"""Random numbers of an iteration: a function of seed and stream position alone."""

from dataclasses import fields, replace

import pytest
import torch

from distillation.noise import NoiseSettings, draw_discriminator_crop, draw_noise

SETTINGS = NoiseSettings(3, (249, 499, 749, 999), (0.25,) * 4, (20, 980))
SHAPE = (4, 2, 2)


def test_two_ranks_draw_what_one_rank_with_twice_the_batch_draws():
    whole = draw_noise(SETTINGS, range(8), SHAPE)
    halves = [draw_noise(SETTINGS, r, SHAPE) for r in (range(4), range(4, 8))]
    for field in fields(whole):
        parts = torch.cat([getattr(half, field.name) for half in halves])
        assert torch.equal(getattr(whole, field.name), parts), field.name


def test_seed_and_position_both_matter():
    a, b = draw_noise(SETTINGS, [0], SHAPE), draw_noise(SETTINGS, [1], SHAPE)
    c = draw_noise(replace(SETTINGS, seed=4), [0], SHAPE)
    assert not torch.equal(a.eps, b.eps)
    assert not torch.equal(a.eps, c.eps)
    assert not torch.equal(a.eps, a.eps_teacher)
    assert not torch.equal(a.augment_real, a.augment_fake)


def test_distributions():
    """s follows its probabilities, t is uniform in [20, 980), noise is unit Gaussian."""
    settings = replace(SETTINGS, student_probabilities=(0.1, 0.0, 0.3, 0.6))
    d = draw_noise(settings, range(4000), SHAPE)
    shares = [(d.s == s).float().mean().item() for s in settings.student_timesteps]
    assert shares == pytest.approx([0.1, 0.0, 0.3, 0.6], abs=0.03)
    assert d.t.min() >= 20
    assert d.t.max() < 980
    assert d.t.float().mean().item() == pytest.approx(499.5, abs=15)
    assert d.eps.mean().item() == pytest.approx(0, abs=0.02)
    assert d.eps.std().item() == pytest.approx(1, abs=0.02)
    assert d.augment_fake.min() >= 0
    assert d.augment_fake.max() < 1


def test_crop_is_shared_by_an_iteration_and_changes_with_it():
    assert draw_discriminator_crop(0, 5) == draw_discriminator_crop(0, 5)
    assert draw_discriminator_crop(0, 5) != draw_discriminator_crop(0, 6)
    assert all(0 <= u < 1 for u in draw_discriminator_crop(0, 5))

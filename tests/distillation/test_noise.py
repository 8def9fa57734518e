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


def test_student_timesteps_of_the_warm_up_are_those_of_the_first_positions():
    """By position alone, so that a resumed run and several processes know where it ends; all else is as without."""
    probabilities = (0.1, 0.1, 0.1, 0.7)
    plain = replace(SETTINGS, student_probabilities=probabilities)
    warm = replace(plain, warmup_positions=1000, warmup_probabilities=(0.5, 0.5, 0.0, 0.0))
    first, later = draw_noise(warm, range(1000), SHAPE), draw_noise(warm, range(1000, 2000), SHAPE)
    assert set(first.s.tolist()) == {249, 499}
    assert (first.s == 249).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(later.s, draw_noise(plain, range(1000, 2000), SHAPE).s)
    assert (later.s == 999).float().mean().item() == pytest.approx(0.7, abs=0.05)
    assert draw_noise(warm, [999], SHAPE).s.item() in (249, 499)
    unchanged = draw_noise(plain, range(1000), SHAPE)
    assert all(torch.equal(getattr(first, f.name), getattr(unchanged, f.name)) for f in fields(first) if f.name != "s")


@pytest.mark.parametrize(("mean", "std"), [(1.0, 1.0), (-0.5, 2.0)])
def test_noise_levels_of_the_latent_discriminator_are_logit_normal(mean, std):
    """The logit of t^ / T is Gaussian: its mean, deviation and the share below the mean."""
    d = draw_noise(replace(SETTINGS, t_hat_mean=mean, t_hat_std=std), range(4000), SHAPE)
    assert d.t_hat.dtype == torch.int64
    assert 0 <= d.t_hat.min() < d.t_hat.max() <= 999
    logit = torch.logit((d.t_hat.double() + 0.5) / 1000)
    assert logit.mean().item() == pytest.approx(mean, abs=0.08)
    assert logit.std().item() == pytest.approx(std, rel=0.05)
    assert (logit < mean).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert not torch.equal(d.eps_hat, d.eps_teacher)
    assert d.eps_hat.std().item() == pytest.approx(1, abs=0.02)


def test_noise_level_never_exceeds_the_schedule():
    d = draw_noise(replace(SETTINGS, t_hat_mean=60.0, num_timesteps=500), range(8), SHAPE)
    assert set(d.t_hat.tolist()) == {499}


def test_crop_is_shared_by_an_iteration_and_changes_with_it():
    assert draw_discriminator_crop(0, 5) == draw_discriminator_crop(0, 5)
    assert draw_discriminator_crop(0, 5) != draw_discriminator_crop(0, 6)
    assert all(0 <= u < 1 for u in draw_discriminator_crop(0, 5))

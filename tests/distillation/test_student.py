"""The student's input and output at its timesteps."""

from types import SimpleNamespace

import pytest
import torch

from distillation.schedule import NoiseSchedule
from distillation.student import diffuse_student, student_sample

ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
Z0, EPS = torch.randn(2, 4, 4, 2, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
S = torch.tensor([249, 499, 749, 999])


@pytest.mark.parametrize(
    ("prediction_type", "rescale"), [("epsilon", False), ("v_prediction", True), ("v_prediction", False)]
)
def test_last_timestep_is_pure_noise_and_the_others_are_not(prediction_type, rescale):
    """Zero terminal SNR both ways: nothing of z0 is left at 999."""
    schedule = NoiseSchedule.from_alphas_cumprod(ALPHAS_CUMPROD, prediction_type, rescale)
    x_s = diffuse_student(schedule, Z0, EPS, S)
    assert torch.equal(x_s[3], EPS[3])
    torch.testing.assert_close(x_s[:3], schedule.diffuse(Z0, EPS, S)[:3])
    assert (diffuse_student(schedule, Z0 + 1, EPS, S)[:3] - x_s[:3]).abs().amin() > 0.01


def test_epsilon_student_at_999_uses_the_original_alpha():
    """x0 = 14.649 n - 14.615 eps^ for a network that answers with a constant."""
    schedule = NoiseSchedule.from_alphas_cumprod(ALPHAS_CUMPROD, "epsilon")
    unet = lambda x, timestep, **condition: SimpleNamespace(sample=torch.full_like(x, 0.5))  # noqa: E731
    s = torch.full((4,), 999)
    x0 = student_sample(unet, schedule, EPS, s, {})
    alpha = ALPHAS_CUMPROD[-1].sqrt()
    expected = (EPS.double() - (1 - alpha**2).sqrt() * 0.5) / alpha
    torch.testing.assert_close(x0.double(), expected, atol=1e-4, rtol=1e-5)


def test_condition_reaches_the_network_as_keywords():
    schedule = NoiseSchedule.from_alphas_cumprod(ALPHAS_CUMPROD, "sample")
    unet = lambda x, timestep, scale: SimpleNamespace(sample=scale * x)  # noqa: E731
    torch.testing.assert_close(student_sample(unet, schedule, EPS, S, {"scale": torch.tensor(3.0)}), 3 * EPS)

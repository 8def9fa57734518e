"""Noise schedules and conversions against closed forms and diffusers' own schedulers."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr as diffusers_rescale

from distillation.schedule import PREDICTION_TYPES, NoiseSchedule, rescale_zero_terminal_snr

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS_CUMPROD = torch.cumprod(1 - BETAS, 0)


def output_of(prediction_type, x0, eps, alpha, sigma):
    return {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}[prediction_type]


def test_alpha_999_of_stable_diffusion():
    """The finite alpha that an epsilon student divides by: x0 = 14.649 n - 14.615 eps."""
    schedule = NoiseSchedule.from_alphas_cumprod(ALPHAS_CUMPROD, "epsilon")
    assert schedule.alphas[-1].item() == pytest.approx(0.06826, abs=1e-5)
    assert (1 / schedule.alphas[-1]).item() == pytest.approx(14.649, abs=2e-3)
    assert (schedule.sigmas[-1] / schedule.alphas[-1]).item() == pytest.approx(14.615, abs=2e-3)


def test_rescaling_ends_at_zero_starts_where_it_did_and_agrees_with_diffusers():
    ours = rescale_zero_terminal_snr(ALPHAS_CUMPROD)
    assert ours[-1] == 0
    assert ours[0].item() == pytest.approx(ALPHAS_CUMPROD[0].item(), abs=1e-12)
    theirs = torch.cumprod(1 - diffusers_rescale(BETAS), 0)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_conversions_invert_the_forward_process(prediction_type):
    """x0 and eps come back from what a perfect network of each kind would output."""
    schedule = NoiseSchedule.from_alphas_cumprod(ALPHAS_CUMPROD, prediction_type)
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 4, 3, 3, generator=g).unbind(0)
    t = torch.tensor([0, 20, 500, 900, 999])
    x_t = schedule.diffuse(x0, eps, t)
    alpha, sigma = (v[t].view(-1, 1, 1, 1) for v in (schedule.alphas, schedule.sigmas))
    output = output_of(prediction_type, x0, eps, alpha, sigma)
    torch.testing.assert_close(schedule.x0(output, x_t, t), x0, atol=5e-5, rtol=1e-4)
    # At t = 0 sigma is 0.03 and the division of `sample` students amplifies float32's rounding.
    torch.testing.assert_close(schedule.eps(output, x_t, t), eps, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_x0_agrees_with_the_stock_scheduler(prediction_type):
    """An independent reference: DDPMScheduler's pred_original_sample."""
    stock = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                          prediction_type=prediction_type)  # fmt: skip
    schedule = NoiseSchedule.from_alphas_cumprod(stock.alphas_cumprod, prediction_type)
    x_t, output = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    for t in (19, 499, 999):
        theirs = stock.step(output, t, x_t).pred_original_sample
        torch.testing.assert_close(schedule.x0(output, x_t, torch.tensor([t])), theirs, atol=1e-4, rtol=1e-4)


def test_rescaled_v_prediction_gives_minus_v_at_the_last_timestep():
    schedule = NoiseSchedule.from_alphas_cumprod(ALPHAS_CUMPROD, "v_prediction", zero_terminal_snr=True)
    v, x = torch.randn(2, 3, 4, 2, 2).unbind(0)
    assert torch.equal(schedule.x0(v, x, torch.full((3,), 999)), -v)


def test_half_precision_inputs_are_computed_in_float32():
    schedule = NoiseSchedule.from_alphas_cumprod(ALPHAS_CUMPROD, "epsilon")
    x, output = torch.randn(2, 2, 4, 2, 2).to(torch.bfloat16).unbind(0)
    x0 = schedule.x0(output, x, torch.tensor([999, 999]))
    assert x0.dtype == torch.float32
    expected = (x.double() - schedule.sigmas[999].double() * output.double()) / schedule.alphas[999].double()
    torch.testing.assert_close(x0.double(), expected, atol=1e-4, rtol=1e-5)


def test_epsilon_on_a_rescaled_schedule_is_refused():
    with pytest.raises(ValueError, match=r"zero terminal SNR.*--zero_terminal_snr terminal"):
        NoiseSchedule.from_alphas_cumprod(ALPHAS_CUMPROD, "epsilon", zero_terminal_snr=True)


def test_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="'flow'"):
        NoiseSchedule.from_alphas_cumprod(ALPHAS_CUMPROD, "flow")

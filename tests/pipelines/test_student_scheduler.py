"""The published scheduler against the method's formulas and against other stock schedulers."""

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)

from examples.tiny.models import make_scheduler
from pipelines import student_scheduler

ALPHA_999, SIGMA_999 = 0.06826, 0.99767  # of Stable Diffusion's schedule


@pytest.fixture
def teacher_config():
    return make_scheduler().config


def noise(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def one_step(scheduler, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    scheduler.set_timesteps(1)
    (t,) = scheduler.timesteps
    assert t == 999
    return scheduler.step(output, t, x, generator=torch.Generator().manual_seed(0), return_dict=False)[0]


def test_epsilon_step_is_the_methods_x0(teacher_config):
    """One step from unit noise: x0 = 14.649 n - 14.615 eps, the finite alpha at 999."""
    n, eps = noise(0), noise(1)
    x0 = one_step(student_scheduler(teacher_config, "epsilon"), n, eps)
    torch.testing.assert_close(x0, (n - SIGMA_999 * eps) / ALPHA_999, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(x0, 14.649 * n - 14.615 * eps, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("prediction_type", "sign"), [("v_prediction", -1), ("sample", 1)])
def test_rescaled_step_is_exact(teacher_config, prediction_type, sign):
    """One step with zero terminal SNR: x0 = -v, or the predicted sample itself, to the stock step's floor of 1e-10."""
    x0 = one_step(student_scheduler(teacher_config, prediction_type), noise(0), noise(1))
    torch.testing.assert_close(x0, sign * noise(1), rtol=0, atol=2e-9)


def test_rescaling_follows_the_paper(teacher_config):
    """a <- (a - a_T) a_0 / (a_0 - a_T) with a = sqrt(alphas_cumprod); epsilon keeps the teacher's betas."""
    teacher = make_scheduler()
    a = teacher.alphas_cumprod.double().sqrt()
    expected = ((a - a[-1]) * a[0] / (a[0] - a[-1])) ** 2
    rescaled = student_scheduler(teacher_config, "v_prediction").alphas_cumprod
    torch.testing.assert_close(rescaled.double(), expected, rtol=1e-3, atol=1e-6)
    assert rescaled[-1] == 0
    assert torch.equal(student_scheduler(teacher_config, "epsilon").betas, teacher.betas)
    unrescaled = student_scheduler(teacher_config, "v_prediction", rescale_betas_zero_snr=False)
    assert torch.equal(unrescaled.betas, teacher.betas)


def as_euler_ancestral(scheduler) -> EulerAncestralDiscreteScheduler:
    return EulerAncestralDiscreteScheduler.from_config(scheduler.config)


def test_euler_ancestral_takes_the_same_single_step(teacher_config):
    """Stock Euler-ancestral, the released Turbo sampler: (x - sigma eps) / alpha of its scaled input x, and -v."""
    n, output = noise(0), noise(1)
    euler = as_euler_ancestral(student_scheduler(teacher_config, "epsilon"))
    euler.set_timesteps(1)
    x = euler.scale_model_input(n * euler.init_noise_sigma, euler.timesteps[0])
    x0 = euler.step(output, euler.timesteps[0], n * euler.init_noise_sigma, return_dict=False)[0]
    torch.testing.assert_close(x0, (x - SIGMA_999 * output) / ALPHA_999, rtol=1e-3, atol=1e-3)

    euler = as_euler_ancestral(student_scheduler(teacher_config, "v_prediction"))
    euler.set_timesteps(1)
    euler.scale_model_input(n * euler.init_noise_sigma, euler.timesteps[0])
    x0 = euler.step(output, euler.timesteps[0], n * euler.init_noise_sigma, return_dict=False)[0]
    torch.testing.assert_close(x0, -output, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("prediction_type", "atol"), [("epsilon", 1e-4), ("v_prediction", 4e-3)])
@pytest.mark.parametrize("steps", [2, 4])
def test_same_law_as_euler_ancestral(teacher_config, prediction_type, atol, steps):
    """The same noise gives the same sample as Euler-ancestral does, once that starts from unit noise too."""

    def sample(scheduler, unit_input):
        generator = torch.Generator().manual_seed(5)
        scheduler.set_timesteps(steps)
        x = torch.randn(2, 4, 8, 8, generator=generator) * unit_input(scheduler)
        for t in scheduler.timesteps:
            output = (0.7 * scheduler.scale_model_input(x, t) + 0.1).tanh()  # any model will do
            x = scheduler.step(output, t, x, generator=generator, return_dict=False)[0]
        return x

    ours = student_scheduler(teacher_config, prediction_type)
    euler = as_euler_ancestral(ours)
    expected = sample(euler, lambda s: (s.sigmas[0] ** 2 + 1) ** 0.5)
    torch.testing.assert_close(sample(ours, lambda s: 1.0), expected, rtol=1e-4, atol=atol)


def test_timesteps_survive_every_stock_scheduler(teacher_config, tmp_path, complaints):
    """A student's own timesteps pass through other schedulers' from_config and their files, without a word."""
    student = (699, 799, 899, 999)
    scheduler = student_scheduler(teacher_config, "v_prediction", student)
    for cls in (EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, DDPMScheduler, LCMScheduler):
        cls.from_config(scheduler.config).save_pretrained(tmp_path / cls.__name__)
        scheduler = cls.from_pretrained(tmp_path / cls.__name__)
        assert scheduler.config["_student_timesteps"] == list(student)
    assert scheduler.config.rescale_betas_zero_snr
    assert not [text for text in complaints if "_student_timesteps" in text]


def test_any_teacher_scheduler_gives_the_same_student(teacher_config):
    """Only the noise schedule is taken from the teacher, whatever its sampler and prediction type."""
    pndm = PNDMScheduler.from_config(teacher_config, prediction_type="v_prediction", skip_prk_steps=True)
    assert student_scheduler(pndm.config, "epsilon").config == student_scheduler(teacher_config, "epsilon").config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction_type": "flow"}, "prediction_type='flow' must be"),
        ({"prediction_type": "epsilon", "rescale_betas_zero_snr": True}, "divides by zero"),
        ({"prediction_type": "epsilon", "student_timesteps": (249, 499)}, r"\[249, 499\] must .* include 999"),
        ({"prediction_type": "epsilon", "student_timesteps": (-1, 999)}, r"within 0\.\.999"),
        ({"prediction_type": "epsilon", "student_timesteps": (999, 999)}, "distinct"),
        ({"prediction_type": "epsilon", "student_timesteps": ()}, "include 999"),
    ],
)
def test_refusals(teacher_config, arguments, message):
    """Bad arguments are named with their value and the mend."""
    with pytest.raises(ValueError, match=message):
        student_scheduler(teacher_config, **arguments)


def test_flow_matching_teacher_is_refused():
    """A scheduler without betas has no DDPM schedule to take over."""
    with pytest.raises(ValueError, match=r"lacks .*beta_start"):
        student_scheduler(FlowMatchEulerDiscreteScheduler().config, "epsilon")

"""The schedules of a run where a repo's own scheduler is rescaled to zero terminal SNR already."""

import pytest
import torch
from diffusers import DDPMScheduler

from pipelines import student_scheduler
from tests.support.runs import options_of
from training.errors import OptionError
from training.options.derived import make_schedules, zero_snr_mode


def scheduler(prediction_type, rescaled):
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type,
        rescale_betas_zero_snr=rescaled,
    )  # fmt: skip


def arguments(*extra):
    return options_of("--pretrained_teacher_model", "base", *extra)


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("flags", [(), ("--zero_terminal_snr", "rescale"), ("--zero_terminal_snr", "terminal")])
def test_published_schedule_is_the_trained_one(prediction_type, rescaled, flags):
    """Or the flags are refused: a base that is rescaled has no other schedule to keep."""
    args, base = arguments(*flags), scheduler(prediction_type, rescaled)
    if rescaled and "terminal" in flags:
        with pytest.raises(OptionError, match=r"--zero_terminal_snr got 'terminal': .*base.*leave the flag out"):
            make_schedules(args, base, base)
        return
    trained, teacher = make_schedules(args, base, base)
    is_rescaled = zero_snr_mode(args, prediction_type) == "rescale"
    published = student_scheduler(base.config, prediction_type, rescale_betas_zero_snr=is_rescaled)
    torch.testing.assert_close(trained.alphas, published.alphas_cumprod.sqrt(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(teacher.alphas, base.alphas_cumprod.sqrt())


@pytest.mark.parametrize("flags", [(), ("--zero_terminal_snr", "terminal"), ("--distillation_weight", "0")])
def test_epsilon_on_a_rescaled_schedule_is_refused(flags):
    base = scheduler("epsilon", rescaled=True)
    with pytest.raises(OptionError, match=r"--pretrained_teacher_model got 'base': .*rescale_betas_zero_snr false"):
        make_schedules(arguments(*flags), base, base)


def test_rescaled_epsilon_is_refused_by_the_flag_that_names_it():
    rescaled, plain = scheduler("epsilon", rescaled=True), scheduler("epsilon", rescaled=False)
    args = arguments("--pretrained_student_model", "mine")
    with pytest.raises(OptionError, match="--pretrained_student_model got 'mine'"):
        make_schedules(args, rescaled, plain)
    with pytest.raises(OptionError, match="--pretrained_teacher_model got 'base'"):
        make_schedules(args, plain, rescaled)

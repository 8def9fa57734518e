"""The schedules of a run where a repo's own scheduler is rescaled to zero terminal SNR already."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from pipelines import student_scheduler
from tests.support.runs import options_of
from training.errors import OptionError
from training.options.derived import make_schedules, make_student_scheduler, zero_snr_mode


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


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_student_is_published_with_the_noise_levels_it_was_trained_at(shift):
    """Those of the published scheduler at four steps, as float32 bit for bit, and the times its network is given."""
    base = FlowMatchEulerDiscreteScheduler(shift=shift)
    options = arguments()
    trained, teacher = make_schedules(options, base, base)
    assert (trained.prediction_type, teacher.prediction_type) == ("flow", "flow")
    published = make_student_scheduler(options, base)
    published.set_timesteps(4)
    known = list(reversed(options.method.student_timesteps))
    assert published.config["_student_timesteps"] == [249, 499, 749, 999]
    assert torch.equal(trained.sigmas[known], published.sigmas[:-1].float())
    assert torch.equal(trained.times[known], published.timesteps.float())


@pytest.mark.parametrize("flag", ["terminal", "rescale"])
def test_flow_matching_needs_no_zero_terminal_snr(flag):
    base = FlowMatchEulerDiscreteScheduler(shift=3.0)
    with pytest.raises(OptionError, match=f"--zero_terminal_snr got '{flag}': .*base is one of flow matching"):
        make_schedules(arguments("--zero_terminal_snr", flag), base, base)


@pytest.mark.parametrize("setting", ["use_dynamic_shifting", "invert_sigmas"])
def test_flow_matching_without_a_fixed_shift_is_refused(setting):
    base = FlowMatchEulerDiscreteScheduler(**{setting: True})
    with pytest.raises(OptionError, match=f"--pretrained_teacher_model got 'base': .*config has {setting}"):
        make_schedules(arguments(), base, base)


def test_nfsd_never_divides_by_zero():
    """alpha_t is 0 at index 999 of a flow-matching teacher alone."""
    flow, diffusion = FlowMatchEulerDiscreteScheduler(shift=3.0), scheduler("v_prediction", rescaled=False)
    flags = ("--distillation_weighting", "nfsd", "--teacher_timestep_range", "20")
    with pytest.raises(OptionError, match=r"--teacher_timestep_range got \[20, 1000\]: nfsd divides by alpha_t"):
        make_schedules(arguments(*flags, "1000"), flow, flow)
    make_schedules(arguments(*flags, "999"), flow, flow)
    make_schedules(arguments(*flags, "1000"), diffusion, diffusion)


def test_student_of_one_kind_learns_from_a_teacher_of_the_other():
    flow, diffusion = FlowMatchEulerDiscreteScheduler(shift=3.0), scheduler("epsilon", rescaled=False)
    student, teacher = make_schedules(arguments("--pretrained_student_model", "mine"), diffusion, flow)
    assert (student.prediction_type, teacher.prediction_type) == ("epsilon", "flow")

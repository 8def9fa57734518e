"""The stock schedulers that students are published with."""

# pyright: reportPrivateImportUsage=false

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import DDPMScheduler, FlowMapEulerDiscreteScheduler

from .timesteps import DEFAULT_STUDENT_TIMESTEPS

_NOISE_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")


def student_scheduler(
    teacher_config: Mapping[str, Any],
    prediction_type: str,
    student_timesteps: Sequence[int] = DEFAULT_STUDENT_TIMESTEPS,
    rescale_betas_zero_snr: bool | None = None,
) -> DDPMScheduler:
    """Make the stock scheduler with which sampling is consistent with the student's training.

    It samples ancestrally (Ho et al. 2020, eq. 7; Euler-ancestral with eta = 1 has the same distribution) with the
    teacher's betas and trailing spacing, from unit Gaussian noise at T - 1. At T - 1, epsilon students compute
    x0 = (x - sigma eps) / alpha with the schedule's own finite alpha, whereas for v-prediction and sample students
    the schedule is rescaled to zero terminal SNR (Lin et al. 2305.08891), so that x0 is exactly -v or the output.

    Args:
        teacher_config: config of a scheduler of any stock class with the teacher's noise schedule.
        prediction_type: prediction type of the student: "epsilon", "v_prediction" or "sample".
        student_timesteps: training indices at which the student is trained, including T - 1.
        rescale_betas_zero_snr: whether to rescale the betas; by default, unless `prediction_type` is "epsilon".

    Returns:
        A stock scheduler. Its config also contains `student_timesteps`, under a private name that stock loaders ignore.

    Raises:
        ValueError: the noise schedule or prediction type is not supported, epsilon is combined with a rescaled
            schedule, or the timesteps are repeated, out of range or do not include T - 1.
    """
    missing = [key for key in _NOISE_SCHEDULE if key not in teacher_config]
    if missing:
        raise ValueError(
            f"teacher_config lacks {missing}: ADD needs a scheduler with a DDPM noise schedule, such as DDIMScheduler."
        )
    if prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"prediction_type={prediction_type!r} must be 'epsilon', 'v_prediction' or 'sample'.")
    if rescale_betas_zero_snr is None:
        rescale_betas_zero_snr = prediction_type != "epsilon"
    if rescale_betas_zero_snr and prediction_type == "epsilon":
        raise ValueError(
            "rescale_betas_zero_snr=True cannot be combined with prediction_type='epsilon': x0 = (x - sigma eps) / "
            "alpha divides by zero at the last timestep. Use False; sampling starts from pure noise in any case."
        )
    timesteps = _checked(student_timesteps, teacher_config["num_train_timesteps"] - 1)
    scheduler = DDPMScheduler(
        **{key: teacher_config[key] for key in _NOISE_SCHEDULE},
        prediction_type=prediction_type,
        rescale_betas_zero_snr=rescale_betas_zero_snr,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,  # unused by trailing spacing, but Stable Diffusion's stock pipelines warn at anything else
    )
    scheduler.register_to_config(_student_timesteps=timesteps)
    return scheduler


def flow_student_scheduler(
    teacher_config: Mapping[str, Any], student_timesteps: Sequence[int] = DEFAULT_STUDENT_TIMESTEPS
) -> FlowMapEulerDiscreteScheduler:
    """Build the stock scheduler with which a student of a flow-matching model samples at the noise levels it knows.

    Training index k stands for the noise level u = (k + 1) / T, which is then shifted. This scheduler spaces n steps
    evenly from u = 1 down, at {1, 1/2} and {1, 3/4, 1/2, 1/4} for 2 and 4 steps, and takes Euler steps between them, as
    the teacher's `FlowMatchEulerDiscreteScheduler` does. That one spaces steps between 1 and its smallest noise level,
    so its second of two steps would be at u = 1 / T, where no student is trained.

    Args:
        teacher_config: config of a `FlowMatchEulerDiscreteScheduler`.
        student_timesteps: the training indices at which the student is trained, including T - 1.

    Returns:
        A stock scheduler whose config also carries `student_timesteps`, under a private name that stock loaders ignore.

    Raises:
        ValueError: for another kind of noise schedule, or for timesteps that are repeated, out of range or without T-1.
    """
    missing = [key for key in ("num_train_timesteps", "shift") if key not in teacher_config]
    if missing or teacher_config.get("use_dynamic_shifting"):
        raise ValueError(
            f"teacher_config lacks {missing or 'a fixed shift'}: a flow-matching student needs the config of a "
            "FlowMatchEulerDiscreteScheduler without use_dynamic_shifting."
        )
    steps = teacher_config["num_train_timesteps"]
    timesteps = _checked(student_timesteps, steps - 1)
    scheduler = FlowMapEulerDiscreteScheduler(num_train_timesteps=steps, shift=teacher_config["shift"])
    scheduler.register_to_config(_student_timesteps=timesteps)
    return scheduler


def _checked(student_timesteps: Sequence[int], last: int) -> list[int]:
    """Return the timesteps, ascending, if they are distinct, within 0..`last`, and include `last`."""
    timesteps = sorted({int(t) for t in student_timesteps})
    if not timesteps or timesteps[0] < 0 or timesteps[-1] != last or len(timesteps) != len(student_timesteps):
        raise ValueError(
            f"student_timesteps={list(student_timesteps)} must be distinct, within 0..{last}, and include {last}, "
            "where sampling starts."
        )
    return timesteps

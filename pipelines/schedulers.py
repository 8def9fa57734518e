"""The stock scheduler that a student is published with."""

# pyright: reportPrivateImportUsage=false

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import DDPMScheduler

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
    last = teacher_config["num_train_timesteps"] - 1
    timesteps = sorted({int(t) for t in student_timesteps})
    if not timesteps or timesteps[0] < 0 or timesteps[-1] != last or len(timesteps) != len(student_timesteps):
        raise ValueError(
            f"student_timesteps={list(student_timesteps)} must be distinct, within 0..{last}, and include {last}, "
            "where sampling starts."
        )
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

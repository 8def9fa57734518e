"""Values derived from several flags, or from the flags and the model: schedules, guidance, prompts, precision."""

import os
from typing import TypeAlias

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from distillation.noise import NoiseSettings
from distillation.schedule import FLOW, NoiseSchedule
from distillation.teacher import NFSD_NEGATIVE_PROMPT
from pipelines import flow_student_scheduler, student_scheduler
from training.errors import OptionError
from training.options.options import Options

Scheduler: TypeAlias = DDPMScheduler | FlowMatchEulerDiscreteScheduler

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def default_precision() -> str:
    """The mixed precision that accelerate is configured for; if none is configured, bf16 on a GPU that supports it."""
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if configured == "no" and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return "bf16"
    return configured


def precision(options: Options) -> str:
    """`--mixed_precision` if given, else the default precision: "no", "fp16" or "bf16"."""
    return options.hardware.mixed_precision or default_precision()


def frozen_dtype(accelerator: Accelerator) -> torch.dtype:
    """The dtype of the frozen networks' weights, which is the dtype that they compute in."""
    return HALF.get(accelerator.mixed_precision, torch.float32)


def student_model(options: Options) -> str:
    """The repo of the student's initial weights: `--pretrained_student_model` if given, else the teacher's repo."""
    return options.models.pretrained_student_model or options.models.pretrained_teacher_model


def learning_rate(options: Options) -> float:
    """`--learning_rate` if given, else 1e-5, or 1e-4 with `--use_lora`: an adapter starts at zero and needs more."""
    if options.optimization.learning_rate is not None:
        return options.optimization.learning_rate
    return 1e-4 if options.lora.use_lora else 1e-5


def effective_batch_size(options: Options, num_processes: int) -> int:
    """Samples per update of a network, over all processes and micro-batches."""
    optimization = options.optimization
    return optimization.train_batch_size * optimization.gradient_accumulation_steps * num_processes


def samples_per_iteration(options: Options, num_processes: int) -> int:
    """Samples that an iteration reads: one effective batch for each of `--discriminator_steps`.

    The stream's position after a number of iterations is that number times this, which is how a run is resumed and
    what the warm-up of the student's timesteps counts by.
    """
    return effective_batch_size(options, num_processes) * options.discriminator.discriminator_steps


def total_iterations(options: Options, num_samples: int | None, num_processes: int) -> int:
    """`--max_train_steps` if given, else the number of iterations in `--num_train_epochs` passes over the data.

    Args:
        num_samples: number of rows of the data set; None for a stream.

    Raises:
        OptionError: the data set is a stream and `--max_train_steps` is not given.
    """
    optimization = options.optimization
    if optimization.max_train_steps is not None:
        return optimization.max_train_steps
    if num_samples is None:
        raise OptionError("--streaming got True: the length of a stream is unknown; give --max_train_steps")
    samples = optimization.num_train_epochs * num_samples
    return max(1, samples // samples_per_iteration(options, num_processes))


def uses_latent_discriminator(options: Options) -> bool:
    """Whether there is a discriminator, and it judges latents by the teacher's features."""
    return options.method.adversarial_weight > 0 and options.discriminator.is_latent


def needs_teacher(options: Options) -> bool:
    """Whether a teacher is loaded: for its targets, or for its features."""
    return options.method.distillation_weight > 0 or uses_latent_discriminator(options)


def decodes(options: Options) -> bool:
    """Whether samples are decoded while training."""
    judges_pixels = options.method.adversarial_weight > 0 and not options.discriminator.is_latent
    distils_pixels = options.method.distillation_weight > 0 and options.method.distillation_space == "pixel"
    return judges_pixels or distils_pixels


def prediction_type_of(scheduler: Scheduler) -> str:
    """What a network with this `scheduler` predicts: one of `PREDICTION_TYPES`, or `FLOW`."""
    return FLOW if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) else scheduler.config["prediction_type"]


def make_student_scheduler(options: Options, scheduler: Scheduler) -> Scheduler:
    """The stock scheduler that the student is published with.

    Args:
        scheduler: scheduler of the model that the student started from.
    """
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return flow_student_scheduler(scheduler.config, options.method.student_timesteps)
    prediction_type = prediction_type_of(scheduler)
    return student_scheduler(
        scheduler.config,
        prediction_type,
        options.method.student_timesteps,
        rescale_betas_zero_snr=zero_snr_mode(options, prediction_type) == "rescale",
    )


def make_schedules(
    options: Options, student_scheduler: Scheduler, teacher_scheduler: Scheduler
) -> tuple[NoiseSchedule, NoiseSchedule]:
    """The noise schedules of student and teacher, from the schedulers' configs; no weights are needed.

    Raises:
        OptionError: student timesteps that do not end at the schedule's last, an epsilon network on a rescaled
            schedule, `--zero_terminal_snr terminal` for a student whose own schedule is rescaled, or what flow matching
            does not have.
    """
    method, last = options.method, student_scheduler.config["num_train_timesteps"] - 1
    if method.student_timesteps[-1] != last:
        raise OptionError(
            f"--student_timesteps got {list(method.student_timesteps)}: the last must be {last}, because sampling "
            "starts from pure noise at that timestep"
        )
    steps = teacher_scheduler.config["num_train_timesteps"]
    if method.teacher_timestep_range[1] > steps:
        raise OptionError(
            f"--teacher_timestep_range got {list(method.teacher_timestep_range)}: HIGH is at most {steps}, the number "
            "of the teacher's timesteps"
        )
    separate = options.models.pretrained_student_model is not None
    student_flag = "pretrained_student_model" if separate else "pretrained_teacher_model"
    _refuse_rescaled_epsilon(student_flag, student_model(options), student_scheduler)
    if options.method.distillation_weight > 0:
        _refuse_rescaled_epsilon("pretrained_teacher_model", options.models.pretrained_teacher_model, teacher_scheduler)
        _refuse_nfsd_at_pure_noise(options, teacher_scheduler)
    return _student_schedule(options, student_flag, student_scheduler), _own_schedule(
        "pretrained_teacher_model", options.models.pretrained_teacher_model, teacher_scheduler
    )


def _student_schedule(options: Options, flag: str, scheduler: Scheduler) -> NoiseSchedule:
    """The student's schedule, rescaled as `--zero_terminal_snr` says."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        if options.method.zero_terminal_snr is not None:
            raise OptionError(
                f"--zero_terminal_snr got {options.method.zero_terminal_snr!r}: the schedule of "
                f"{student_model(options)} is one of flow matching, which ends at pure noise by itself; leave the flag "
                "out"
            )
        return _own_schedule(flag, student_model(options), scheduler)
    prediction_type = prediction_type_of(scheduler)
    mode = zero_snr_mode(options, prediction_type)
    if mode == "terminal" and _is_rescaled(scheduler):
        raise OptionError(
            f"--zero_terminal_snr got 'terminal': the schedule of {student_model(options)} already ends at zero SNR "
            "(rescale_betas_zero_snr in the config of its scheduler); leave the flag out"
        )
    if mode == "rescale" and prediction_type == "epsilon":
        raise OptionError(
            f"--zero_terminal_snr got 'rescale': {student_model(options)} predicts epsilon, and on a rescaled "
            "schedule x0 = (x - sigma * eps) / alpha divides by alpha_999 = 0; use --zero_terminal_snr terminal"
        )
    return NoiseSchedule.from_alphas_cumprod(
        scheduler.alphas_cumprod, prediction_type, zero_terminal_snr=mode == "rescale"
    )


def _own_schedule(flag: str, name: str, scheduler: Scheduler) -> NoiseSchedule:
    """The schedule that the model `name` was trained with.

    Raises:
        OptionError: it is one of flow matching whose shift depends on the image's size.
    """
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return NoiseSchedule.from_alphas_cumprod(scheduler.alphas_cumprod, prediction_type_of(scheduler))
    config = scheduler.config
    for setting in ("use_dynamic_shifting", "invert_sigmas"):
        if config.get(setting):
            raise OptionError(
                f"--{flag} got {name!r}: its scheduler's config has {setting}, and only a fixed `shift` can be used; "
                f"use a copy of the model with {setting} false in scheduler/scheduler_config.json"
            )
    return NoiseSchedule.flow_matching(config["num_train_timesteps"], config["shift"])


def _refuse_nfsd_at_pure_noise(options: Options, scheduler: Scheduler) -> None:
    """Raises: OptionError: NFSD would divide by alpha_t = 0 at the last index of a flow-matching teacher."""
    low, high = options.method.teacher_timestep_range
    steps = scheduler.config["num_train_timesteps"]
    is_nfsd = options.method.distillation_weighting == "nfsd"
    if is_nfsd and prediction_type_of(scheduler) == FLOW and high == steps:
        raise OptionError(
            f"--teacher_timestep_range got {[low, high]}: nfsd divides by alpha_t, which is 0 at the last index of a "
            f"flow-matching teacher; give a HIGH of at most {steps - 1}, or another --distillation_weighting"
        )


def _is_rescaled(scheduler: DDPMScheduler) -> bool:
    """Whether the scheduler's own config gives zero SNR at the last timestep."""
    return float(scheduler.alphas_cumprod[-1]) <= 0


def _refuse_rescaled_epsilon(flag: str, name: str, scheduler: Scheduler) -> None:
    """Raise an OptionError if the model `name` predicts epsilon and its own schedule ends at zero SNR."""
    is_flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    if not is_flow and prediction_type_of(scheduler) == "epsilon" and _is_rescaled(scheduler):
        raise OptionError(
            f"--{flag} got {name!r}: its scheduler's config has prediction_type epsilon and rescale_betas_zero_snr, "
            "and at the last timestep x0 = (x - sigma * eps) / alpha would divide by 0; use a copy of the model with "
            "rescale_betas_zero_snr false in scheduler/scheduler_config.json"
        )


def zero_snr_mode(options: Options, prediction_type: str) -> str:
    """`--zero_terminal_snr`, or what fits the prediction type."""
    if prediction_type == FLOW:
        return "flow matching"
    return options.method.zero_terminal_snr or ("terminal" if prediction_type == "epsilon" else "rescale")


def guidance_scale(options: Options) -> float:
    """`--teacher_guidance_scale` if given, else 7.5 for NFSD and 1.0 (no guidance) otherwise."""
    if options.method.teacher_guidance_scale is not None:
        return options.method.teacher_guidance_scale
    return 7.5 if options.method.distillation_weighting == "nfsd" else 1.0


def guiding_prompts(options: Options) -> tuple[str, ...]:
    """The prompts that the teacher's target needs in addition to the caption: none, one, or two for NFSD.

    Each prompt costs the teacher one forward pass.
    """
    if options.method.distillation_weight == 0:
        return ()
    if options.method.distillation_weighting == "nfsd":
        return ("", NFSD_NEGATIVE_PROMPT if options.method.negative_prompt is None else options.method.negative_prompt)
    return () if guidance_scale(options) == 1.0 else (options.method.negative_prompt or "",)


def warmup_probabilities(options: Options) -> tuple[float, ...]:
    """`--student_timestep_warmup_probabilities`, or the less noisy half of the student's timesteps, evenly."""
    n = len(options.method.student_timesteps)
    half = max(1, n // 2)
    return options.method.student_timestep_warmup_probabilities or (1 / half,) * half + (0.0,) * (n - half)


def noise_settings(options: Options, seed: int, num_processes: int, num_timesteps: int) -> NoiseSettings:
    """The distributions of a run's random numbers. `num_timesteps` are those of the teacher's schedule."""
    method = options.method
    n = len(method.student_timesteps)
    return NoiseSettings(
        seed=seed,
        student_timesteps=method.student_timesteps,
        student_probabilities=method.student_timestep_probabilities or (1 / n,) * n,
        teacher_timesteps=method.teacher_timestep_range,
        warmup_positions=method.student_timestep_warmup_steps * samples_per_iteration(options, num_processes),
        warmup_probabilities=warmup_probabilities(options),
        t_hat_mean=options.discriminator.discriminator_timestep_mean,
        t_hat_std=options.discriminator.discriminator_timestep_std,
        num_timesteps=num_timesteps,
    )

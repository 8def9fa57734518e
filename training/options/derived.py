"""Values that follow from several flags, or from the flags and the model: schedules, guidance, prompts, precision."""

import os

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler

from distillation.noise import NoiseSettings
from distillation.schedule import NoiseSchedule
from distillation.teacher import NFSD_NEGATIVE_PROMPT
from pipelines import student_scheduler
from training.errors import OptionError
from training.options.options import Options

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def default_precision() -> str:
    """accelerate's own setting; where it has none, bf16 on a GPU that has it."""
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if configured == "no" and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return "bf16"
    return configured


def precision(options: Options) -> str:
    """`--mixed_precision`, or what is used without the flag: "no", "fp16" or "bf16"."""
    return options.hardware.mixed_precision or default_precision()


def frozen_dtype(accelerator: Accelerator) -> torch.dtype:
    """The precision of the frozen networks' weights: that in which they run."""
    return HALF.get(accelerator.mixed_precision, torch.float32)


def student_model(options: Options) -> str:
    """The repo that the student starts from: the teacher's, unless another is given."""
    return options.models.pretrained_student_model or options.models.pretrained_teacher_model


def learning_rate(options: Options) -> float:
    """`--learning_rate`, or 1e-5, or with `--use_lora` 1e-4: an adapter starts at zero and needs a higher rate."""
    if options.optimization.learning_rate is not None:
        return options.optimization.learning_rate
    return 1e-4 if options.lora.use_lora else 1e-5


def effective_batch_size(options: Options, num_processes: int) -> int:
    """Samples per iteration, over all processes and micro-batches."""
    optimization = options.optimization
    return optimization.train_batch_size * optimization.gradient_accumulation_steps * num_processes


def total_iterations(options: Options, num_samples: int | None, num_processes: int) -> int:
    """`--max_train_steps`, or the iterations of `--num_train_epochs` passes over `num_samples` rows."""
    optimization = options.optimization
    if optimization.max_train_steps is not None:
        return optimization.max_train_steps
    if num_samples is None:
        raise OptionError("--streaming got True: the length of a stream is unknown; give --max_train_steps")
    samples = optimization.num_train_epochs * num_samples
    return max(1, samples // effective_batch_size(options, num_processes))


def make_student_scheduler(options: Options, scheduler: DDPMScheduler) -> DDPMScheduler:
    """The stock scheduler that the student is published with.

    Args:
        scheduler: of the model that the student started from.
    """
    prediction_type = scheduler.config["prediction_type"]
    return student_scheduler(
        scheduler.config,
        prediction_type,
        options.method.student_timesteps,
        rescale_betas_zero_snr=zero_snr_mode(options, prediction_type) == "rescale",
    )


def make_schedules(
    options: Options, student_scheduler: DDPMScheduler, teacher_scheduler: DDPMScheduler
) -> tuple[NoiseSchedule, NoiseSchedule]:
    """Student's and teacher's schedule. Needs the schedulers' configs alone, so it can refuse before any weight loads.

    Raises:
        OptionError: student timesteps that do not end at the schedule's last, an epsilon network on a rescaled
            schedule, or `--zero_terminal_snr terminal` for a student whose own schedule is rescaled.
    """
    config, method = student_scheduler.config, options.method
    prediction_type, last = config["prediction_type"], config["num_train_timesteps"] - 1
    if method.student_timesteps[-1] != last:
        raise OptionError(
            f"--student_timesteps got {list(method.student_timesteps)}: the last must be {last}, where sampling starts "
            "from pure noise"
        )
    steps = teacher_scheduler.config["num_train_timesteps"]
    if method.teacher_timestep_range[1] > steps:
        raise OptionError(
            f"--teacher_timestep_range got {list(method.teacher_timestep_range)}: HIGH is at most {steps}"
        )
    separate = options.models.pretrained_student_model is not None
    student_flag = "pretrained_student_model" if separate else "pretrained_teacher_model"
    _refuse_rescaled_epsilon(student_flag, student_model(options), student_scheduler)
    if options.method.distillation_weight > 0:
        _refuse_rescaled_epsilon("pretrained_teacher_model", options.models.pretrained_teacher_model, teacher_scheduler)
    mode = zero_snr_mode(options, prediction_type)
    if mode == "terminal" and _is_rescaled(student_scheduler):
        raise OptionError(
            f"--zero_terminal_snr got 'terminal': the schedule of {student_model(options)} is rescaled already "
            "(rescale_betas_zero_snr in its scheduler's config), so there is no other one to keep; leave the flag out"
        )
    if mode == "rescale" and prediction_type == "epsilon":
        raise OptionError(
            f"--zero_terminal_snr got 'rescale': {student_model(options)} predicts epsilon, and on a rescaled "
            "schedule x0 = (x - sigma * eps) / alpha divides by alpha_999 = 0; use --zero_terminal_snr terminal"
        )
    student = NoiseSchedule.from_alphas_cumprod(
        student_scheduler.alphas_cumprod, prediction_type, zero_terminal_snr=mode == "rescale"
    )
    teacher = NoiseSchedule.from_alphas_cumprod(
        teacher_scheduler.alphas_cumprod, teacher_scheduler.config["prediction_type"]
    )
    return student, teacher


def _is_rescaled(scheduler: DDPMScheduler) -> bool:
    """Whether the schedule ends at zero SNR by its own config."""
    return float(scheduler.alphas_cumprod[-1]) <= 0


def _refuse_rescaled_epsilon(flag: str, name: str, scheduler: DDPMScheduler) -> None:
    """Raises: OptionError: the model `name` predicts epsilon, and its own schedule ends at zero SNR."""
    if scheduler.config["prediction_type"] == "epsilon" and _is_rescaled(scheduler):
        raise OptionError(
            f"--{flag} got {name!r}: its scheduler's config has prediction_type epsilon and rescale_betas_zero_snr, "
            "and at the last timestep x0 = (x - sigma * eps) / alpha would divide by 0; use a copy of the model with "
            "rescale_betas_zero_snr false in scheduler/scheduler_config.json"
        )


def zero_snr_mode(options: Options, prediction_type: str) -> str:
    """`--zero_terminal_snr`, or what fits the prediction type."""
    return options.method.zero_terminal_snr or ("terminal" if prediction_type == "epsilon" else "rescale")


def guidance_scale(options: Options) -> float:
    """`--teacher_guidance_scale`, or NFSD's 7.5 and otherwise none."""
    if options.method.teacher_guidance_scale is not None:
        return options.method.teacher_guidance_scale
    return 7.5 if options.method.distillation_weighting == "nfsd" else 1.0


def guiding_prompts(options: Options) -> tuple[str, ...]:
    """The prompts beside the caption that the teacher's target is made with: none, one, or NFSD's two.

    No others than this run needs: each costs the teacher a forward.
    """
    if options.method.distillation_weighting == "nfsd":
        return ("", NFSD_NEGATIVE_PROMPT if options.method.negative_prompt is None else options.method.negative_prompt)
    return () if guidance_scale(options) == 1.0 else (options.method.negative_prompt or "",)


def noise_settings(options: Options, seed: int) -> NoiseSettings:
    """The distributions of a run's random numbers."""
    method = options.method
    n = len(method.student_timesteps)
    probabilities = method.student_timestep_probabilities or (1 / n,) * n
    return NoiseSettings(seed, method.student_timesteps, probabilities, method.teacher_timestep_range)

"""What the flags leave to the model or to each other, worked out: schedules, guidance, prompts, precisions."""

import argparse
import os

import torch
from accelerate import Accelerator
from diffusers import SchedulerMixin

from distillation.noise import NoiseSettings
from distillation.schedule import NoiseSchedule
from distillation.teacher import NFSD_NEGATIVE_PROMPT
from training.errors import OptionError

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def default_precision() -> str:
    """accelerate's own setting; where it has none, bf16 on a GPU that has it."""
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if configured == "no" and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return "bf16"
    return configured


def precision(args: argparse.Namespace) -> str:
    """`--mixed_precision`, or what is used without the flag: "no", "fp16" or "bf16"."""
    return args.mixed_precision or default_precision()


def frozen_dtype(accelerator: Accelerator) -> torch.dtype:
    """Networks that don't train are kept in the precision that they are run in."""
    return HALF.get(accelerator.mixed_precision, torch.float32)


def student_model(args: argparse.Namespace) -> str:
    """The repo the student is made of: the teacher's, unless another is named."""
    return args.pretrained_student_model or args.pretrained_teacher_model


def make_schedules(
    args: argparse.Namespace, student_scheduler: SchedulerMixin, teacher_scheduler: SchedulerMixin
) -> tuple[NoiseSchedule, NoiseSchedule]:
    """Student's and teacher's schedule. Needs the schedulers' configs alone, so it can refuse before any weight loads.

    Raises:
        OptionError: student timesteps that do not end at the schedule's last, an epsilon network on a rescaled
            schedule, or `--zero_terminal_snr terminal` for a student whose own schedule is rescaled.
    """
    config = student_scheduler.config
    prediction_type, last = config.prediction_type, config.num_train_timesteps - 1
    if args.student_timesteps[-1] != last:
        raise OptionError(
            f"--student_timesteps got {args.student_timesteps}: the last must be {last}, where sampling starts from "
            "pure noise"
        )
    steps = teacher_scheduler.config.num_train_timesteps
    if args.teacher_timestep_range[1] > steps:
        raise OptionError(f"--teacher_timestep_range got {args.teacher_timestep_range}: HIGH is at most {steps}")
    student_flag = "pretrained_teacher_model" if args.pretrained_student_model is None else "pretrained_student_model"
    _refuse_rescaled_epsilon(student_flag, student_model(args), student_scheduler)
    if args.distillation_weight > 0:
        _refuse_rescaled_epsilon("pretrained_teacher_model", args.pretrained_teacher_model, teacher_scheduler)
    mode = zero_snr_mode(args, prediction_type)
    if mode == "terminal" and _is_rescaled(student_scheduler):
        raise OptionError(
            f"--zero_terminal_snr got 'terminal': the schedule of {student_model(args)} is rescaled already "
            "(rescale_betas_zero_snr in its scheduler's config), so there is no other one to keep; leave the flag out"
        )
    if mode == "rescale" and prediction_type == "epsilon":
        raise OptionError(
            f"--zero_terminal_snr got 'rescale': {student_model(args)} predicts epsilon, and on a rescaled "
            "schedule x0 = (x - sigma * eps) / alpha divides by alpha_999 = 0; use --zero_terminal_snr terminal"
        )
    student = NoiseSchedule.from_alphas_cumprod(
        student_scheduler.alphas_cumprod, prediction_type, zero_terminal_snr=mode == "rescale"
    )
    teacher = NoiseSchedule.from_alphas_cumprod(
        teacher_scheduler.alphas_cumprod, teacher_scheduler.config.prediction_type
    )
    return student, teacher


def _is_rescaled(scheduler: SchedulerMixin) -> bool:
    """Whether the schedule ends at zero SNR by its own config."""
    return float(scheduler.alphas_cumprod[-1]) <= 0


def _refuse_rescaled_epsilon(flag: str, name: str, scheduler: SchedulerMixin) -> None:
    """Raises: OptionError: the model `name` predicts epsilon, and its own schedule ends at zero SNR."""
    if scheduler.config.prediction_type == "epsilon" and _is_rescaled(scheduler):
        raise OptionError(
            f"--{flag} got {name!r}: its scheduler's config has prediction_type epsilon and rescale_betas_zero_snr, "
            "and at the last timestep x0 = (x - sigma * eps) / alpha would divide by 0; use a copy of the model with "
            "rescale_betas_zero_snr false in scheduler/scheduler_config.json"
        )


def zero_snr_mode(args: argparse.Namespace, prediction_type: str) -> str:
    """`--zero_terminal_snr`, or what fits the prediction type."""
    return args.zero_terminal_snr or ("terminal" if prediction_type == "epsilon" else "rescale")


def guidance_scale(args: argparse.Namespace) -> float:
    """`--teacher_guidance_scale`, or NFSD's 7.5 and otherwise none."""
    if args.teacher_guidance_scale is not None:
        return args.teacher_guidance_scale
    return 7.5 if args.distillation_weighting == "nfsd" else 1.0


def guiding_prompts(args: argparse.Namespace) -> tuple[str, ...]:
    """The prompts beside the caption that the teacher's target is made with: none, one, or NFSD's two.

    No others than this run needs: each costs the teacher a forward.
    """
    if args.distillation_weighting == "nfsd":
        return ("", NFSD_NEGATIVE_PROMPT if args.negative_prompt is None else args.negative_prompt)
    return () if guidance_scale(args) == 1.0 else (args.negative_prompt or "",)


def noise_settings(args: argparse.Namespace, seed: int) -> NoiseSettings:
    """What the run's random numbers are drawn from."""
    n = len(args.student_timesteps)
    probabilities = args.student_timestep_probabilities or [1 / n] * n
    return NoiseSettings(seed, tuple(args.student_timesteps), tuple(probabilities), tuple(args.teacher_timestep_range))

"""Everything that stands before the first iteration: precision, schedules, networks, and what is said about them."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import diffusers
import torch
import transformers
from accelerate import Accelerator, DistributedType
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from torch import Tensor

from discriminator import Discriminator, FeatureNetwork, ImageCondition, TextCondition
from distillation.schedule import NoiseSchedule
from distillation.student import Condition
from distillation.teacher import Teacher

from .arguments import NONE, ArgumentError
from .draws import DrawSettings
from .step import ADDStep

logger = get_logger(__name__)


class Family(Protocol):
    """What Stable Diffusion and SDXL do each in their own way. Made from a repo; `load` brings the weights."""

    scheduler: SchedulerMixin
    vae: AutoencoderKL
    unet: UNet2DConditionModel

    def load(self, dtype: torch.dtype, device: torch.device) -> None:
        """Load the weights, frozen, in `dtype` on `device`."""

    def condition(self, captions: Sequence[str], sizes: dict[str, Tensor]) -> Condition:
        """Captions, and each image's original size and crop, as keyword arguments of the UNet."""

    def pipeline(self, unet: UNet2DConditionModel, scheduler: SchedulerMixin) -> DiffusionPipeline:
        """A few-step pipeline around `unet`, sharing the frozen parts."""


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """Accelerator with the run's precision and trackers, and quiet logs on all processes but the first."""
    report_to = None if args.report_to == NONE else args.report_to
    logging_dir = Path(args.output_dir, args.logging_dir)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision or _default_precision(),
        log_with=report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=str(logging_dir)),
    )
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise ArgumentError(
            f"accelerate's configuration got distributed_type {accelerator.distributed_type.value}: two networks train "
            "against each other here, which this loop does on one device or by data parallelism (MULTI_GPU); "
            "change it with `accelerate config`"
        )
    level = logging.INFO if accelerator.is_local_main_process else logging.ERROR
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=level)
    for library in (transformers.utils.logging, diffusers.utils.logging):
        library.set_verbosity(logging.WARNING if level == logging.INFO else logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if args.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return accelerator


def _default_precision() -> str:
    """accelerate's own setting; where it has none, bf16 on a GPU that has it."""
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if configured == "no" and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return "bf16"
    return configured


def frozen_dtype(accelerator: Accelerator) -> torch.dtype:
    """Networks that don't train are kept in the precision that they are run in."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


def make_schedules(args: argparse.Namespace, teacher_scheduler: SchedulerMixin) -> tuple[NoiseSchedule, NoiseSchedule]:
    """Student's and teacher's schedule. Needs the scheduler's config alone, so it can refuse before any weight loads.

    Raises:
        ArgumentError: student timesteps that do not end at the schedule's last, or a rescaled epsilon student.
    """
    config = teacher_scheduler.config
    prediction_type, last = config.prediction_type, config.num_train_timesteps - 1
    if args.student_timesteps[-1] != last:
        raise ArgumentError(
            f"--student_timesteps got {args.student_timesteps}: the last must be {last}, where sampling starts from "
            "pure noise"
        )
    if args.teacher_timestep_range[1] > last + 1:
        raise ArgumentError(f"--teacher_timestep_range got {args.teacher_timestep_range}: HIGH is at most {last + 1}")
    mode = zero_snr_mode(args, prediction_type)
    if mode == "rescale" and prediction_type == "epsilon":
        raise ArgumentError(
            f"--zero_terminal_snr got 'rescale': {args.pretrained_teacher_model} predicts epsilon, and on a rescaled "
            "schedule x0 = (x - sigma * eps) / alpha divides by alpha_999 = 0; use --zero_terminal_snr terminal"
        )
    alphas_cumprod = teacher_scheduler.alphas_cumprod
    teacher = NoiseSchedule.from_alphas_cumprod(alphas_cumprod, prediction_type)
    student = NoiseSchedule.from_alphas_cumprod(alphas_cumprod, prediction_type, zero_terminal_snr=mode == "rescale")
    return student, teacher


def zero_snr_mode(args: argparse.Namespace, prediction_type: str) -> str:
    """`--zero_terminal_snr`, or what fits the prediction type."""
    return args.zero_terminal_snr or ("terminal" if prediction_type == "epsilon" else "rescale")


def guidance_scale(args: argparse.Namespace) -> float:
    """`--teacher_guidance_scale`, or NFSD's 7.5 and otherwise none."""
    if args.teacher_guidance_scale is not None:
        return args.teacher_guidance_scale
    return 7.5 if args.distillation_weighting == "nfsd" else 1.0


def draw_settings(args: argparse.Namespace, seed: int) -> DrawSettings:
    """What the run's random numbers are drawn from."""
    n = len(args.student_timesteps)
    probabilities = args.student_timestep_probabilities or [1 / n] * n
    return DrawSettings(seed, tuple(args.student_timesteps), tuple(probabilities), tuple(args.teacher_timestep_range))


def make_student(args: argparse.Namespace, family: Family) -> UNet2DConditionModel:
    """The trainable UNet in float32: a copy of the teacher's, or fresh weights in its shape."""
    student = UNet2DConditionModel.from_config(family.unet.config)
    if args.student_init == "teacher":
        student.load_state_dict(family.unet.state_dict())
    student.to(family.unet.device).train().requires_grad_(True)
    if args.gradient_checkpointing:
        student.enable_gradient_checkpointing()
        family.vae.enable_gradient_checkpointing()
    if args.enable_xformers_memory_efficient_attention:
        student.enable_xformers_memory_efficient_attention()
        family.unet.enable_xformers_memory_efficient_attention()
    return student


def make_discriminator(
    args: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> tuple[Discriminator, TextCondition | None, ImageCondition | None]:
    """F with fresh heads, and the encoders of c_text and c_img."""
    where = {"cache_dir": args.cache_dir, "dtype": dtype}
    network = FeatureNetwork.from_pretrained(
        args.discriminator_feature_model, input_size=args.discriminator_input_size, **where
    ).to(device)
    text = image = None
    if args.discriminator_text_model != NONE:
        text = TextCondition.from_pretrained(args.discriminator_text_model, **where).to(device)
    if args.discriminator_image_model != NONE:
        image = ImageCondition.from_pretrained(args.discriminator_image_model, **where).to(device)
    condition_dim = sum(encoder.dim for encoder in (text, image) if encoder is not None)
    discriminator = Discriminator(network, condition_dim, not args.no_diffaugment, args.discriminator_norm)
    return discriminator.to(device), text, image


def make_step(
    args: argparse.Namespace,
    family: Family,
    student: UNet2DConditionModel,
    discriminator: Discriminator | None,
    schedules: tuple[NoiseSchedule, NoiseSchedule],
    accelerator: Accelerator,
) -> ADDStep:
    """The losses of this run, around networks that are already prepared."""
    teacher = None
    if args.distillation_weight > 0:
        teacher = Teacher(family.unet, schedules[1], guidance_scale(args), args.teacher_steps)
    return ADDStep(
        student=student,
        schedule=schedules[0],
        vae=family.vae,
        teacher=teacher,
        discriminator=discriminator,
        heads=None if discriminator is None else accelerator.prepare_model(discriminator.heads),
        adversarial_weight=args.adversarial_weight,
        distillation_weight=args.distillation_weight,
        distillation_weighting=args.distillation_weighting,
        distillation_space=args.distillation_space,
        r1_gamma=args.r1_gamma,
        autocast=accelerator.autocast,
    )


def describe(args: argparse.Namespace, accelerator: Accelerator, parts: dict[str, object]) -> str:
    """The resolved configuration in a few lines, for the start of the log."""
    batch = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    lines = {
        "teacher": f"{args.pretrained_teacher_model} ({parts['prediction_type']}, guidance {guidance_scale(args):g}, "
        f"{args.teacher_steps} step, t in [{args.teacher_timestep_range[0]}, {args.teacher_timestep_range[1]}))",
        "student": f"{parts['student_parameters'] / 1e6:.2f}M trainable parameters from {args.student_init} weights",
        "timesteps": f"{args.student_timesteps}, drawn {args.student_timestep_probabilities or 'uniformly'}, "
        f"zero terminal SNR by `{parts['zero_snr']}`",
        "discriminator": "none"
        if args.adversarial_weight == 0
        else f"{parts['head_parameters'] / 1e6:.2f}M parameters in {parts['num_taps']} heads "
        f"({args.discriminator_norm} norm) on {args.discriminator_feature_model} at {parts['input_size']} px; "
        f"c_text {args.discriminator_text_model}, c_img {args.discriminator_image_model}",
        "loss": f"{args.adversarial_weight:g} L_adv + {args.distillation_weight:g} L_distill "
        f"({args.distillation_weighting}, {args.distillation_space}), R1 gamma {args.r1_gamma:g}",
        "batch": f"{batch} = {args.train_batch_size} x {accelerator.num_processes} processes x "
        f"{args.gradient_accumulation_steps} accumulated, of {parts['num_samples']} samples at {args.resolution} px",
        "run": f"{parts['total_steps']} iterations, learning rate {args.learning_rate:g} / "
        f"{args.discriminator_learning_rate:g} (D), {accelerator.mixed_precision} on {accelerator.device}, "
        f"seed {parts['seed']}",
    }
    return "\n".join(f"  {name:<14}{text}" for name, text in lines.items())

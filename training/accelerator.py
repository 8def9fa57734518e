"""Makes the run's accelerator (processes, precision, logs) and describes the resolved configuration."""

import argparse
import logging
from pathlib import Path

import diffusers
import torch
import transformers
from accelerate import Accelerator, DistributedType
from accelerate.utils import ProjectConfiguration

from training.errors import OptionError
from training.options.arguments import NONE
from training.options.derived import guidance_scale, precision


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """Accelerator with the run's precision and trackers, and quiet logs on all processes but the first."""
    report_to = None if args.report_to == NONE else args.report_to
    logging_dir = Path(args.output_dir, args.logging_dir)
    accelerator = Accelerator(
        mixed_precision=precision(args),
        log_with=report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=str(logging_dir)),
    )
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise OptionError(
            f"accelerate's configuration got distributed_type {accelerator.distributed_type.value}: two networks train "
            "against each other here, which this loop does on one device or by data parallelism (MULTI_GPU); "
            "change it with `accelerate config`"
        )
    level = logging.INFO if accelerator.is_local_main_process else logging.ERROR
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=level)
    for library in (transformers.utils.logging, diffusers.utils.logging):
        library.set_verbosity(logging.WARNING if level == logging.INFO else logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    set_tf32(args.allow_tf32)
    return accelerator


def set_tf32(allowed: bool) -> None:
    """Allow TF32 for all float32 matrix products and convolutions on a GPU, or for none.

    torch's own defaults differ: TF32 is off for matrix products and ON for convolutions, of which the discriminator's
    heads consist. The backward passes obey the same two switches, so the heads and R1 cannot be kept out of TF32 while
    the rest uses it: it is one choice for the whole run.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def describe(args: argparse.Namespace, accelerator: Accelerator, parts: dict[str, object]) -> str:
    """The resolved configuration in a few lines, for the start of the log."""
    batch = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    memory = {
        "LoRA rank": args.use_lora and args.lora_rank,
        "teacher": args.teacher_precision,
        "gradient checkpointing": args.gradient_checkpointing,
        "8-bit Adam": args.use_8bit_adam,
        "decoded crop": args.decode_crop_size,
        "tiny decoder": args.pretrained_tiny_vae_model,
        "cache": args.cache_dir_latents,
    }
    lines = {
        "teacher": f"{args.pretrained_teacher_model} ({parts['teacher_prediction']}, guidance "
        f"{guidance_scale(args):g}, {args.teacher_steps} step, t in "
        "[{}, {}))".format(*args.teacher_timestep_range),
        "student": f"{args.pretrained_student_model or 'the same'} ({parts['student_prediction']}), "
        f"{parts['student_parameters'] / 1e6:.2f}M trainable parameters from {args.student_init} weights",
        "timesteps": f"{args.student_timesteps}, drawn {args.student_timestep_probabilities or 'uniformly'}, "
        f"zero terminal SNR by `{parts['zero_snr']}`",
        "discriminator": "none"
        if args.adversarial_weight == 0
        else f"{parts['head_parameters'] / 1e6:.2f}M parameters in {parts['num_taps']} heads "
        f"({args.discriminator_norm} norm) on {args.discriminator_feature_model} at {parts['input_size']} px; "
        f"c_text {args.discriminator_text_model}, c_img {args.discriminator_image_model}; "
        f"real images {'reconstructed' if args.reconstruct_real else 'as they are'}",
        "loss": f"{args.adversarial_weight:g} L_adv + {args.distillation_weight:g} L_distill "
        f"({args.distillation_weighting}, {args.distillation_space}), R1 gamma {args.r1_gamma:g}",
        "batch": f"{batch} = {args.train_batch_size} x {accelerator.num_processes} processes x "
        f"{args.gradient_accumulation_steps} accumulated, of {parts['num_samples']} samples at {args.resolution} px",
        "memory": ", ".join(name if value is True else f"{name} {value}" for name, value in memory.items() if value)
        or "nothing is done to save it",
        "run": f"{parts['total_steps']} iterations, learning rate {args.learning_rate:g} / "
        f"{args.discriminator_learning_rate:g} (D), {accelerator.mixed_precision} on {accelerator.device}, "
        f"seed {parts['seed']}",
    }
    return "\n".join(f"  {name:<14}{text}" for name, text in lines.items())

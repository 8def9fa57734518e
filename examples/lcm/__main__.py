"""Latent consistency distillation (LCM, 2310.04378) of the tiny teacher, for a comparison with ADD.

    python -m examples.lcm --tiny_dir build/tiny --output_dir build/lcm --updates 300

The output is an ordinary diffusers repo with an `LCMScheduler`; see `consistency` for the method.
"""

import argparse
import copy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, LCMScheduler, UNet2DConditionModel
from torch import Tensor

from evaluation.command_line import OneLineParser, make_parser
from evaluation.errors import EvaluationError
from evaluation.runs.files import write_json
from evaluation.tiny.judge import check_tiny_dir, quiet_libraries
from evaluation.tiny.split import Split, read_split
from examples.lcm.consistency import Consistency
from examples.tiny.autoencoder import encode_moments
from examples.tiny.layouts import encode_captions, pick
from examples.tiny.loop import draw, fit
from training.command import command_name, run_command

MODULE = "examples.lcm"
RECORD = "lcm.json"


def distil_student(pipeline: DiffusionPipeline, train: Split, args: argparse.Namespace) -> UNet2DConditionModel:
    """Train and return the averaged student. `pipeline` is that of the teacher and is not changed."""
    teacher = pipeline.unet.eval().requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True)
    average = copy.deepcopy(teacher)
    method = Consistency(
        teacher,
        cast(DDPMScheduler, DDPMScheduler.from_config(pipeline.scheduler.config)),
        cast(LCMScheduler, LCMScheduler.from_config(pipeline.scheduler.config)),
        args.guidance_scale,
    )
    mean, std = (moment * pipeline.vae.config.scaling_factor for moment in encode_moments(pipeline.vae, train.pixels))
    captions = sorted(set(train.captions))
    conditions = encode_captions(pipeline, captions)
    caption_ids = torch.tensor([1 + captions.index(caption) for caption in train.captions])
    nothing = pick(conditions, torch.zeros(args.batch_size, dtype=torch.long))

    def loss_of_batch() -> Tensor:
        update_average(
            average, student, args.ema_decay
        )  # after the last step of the loop; at the first call, both are equal
        rows = draw(len(mean), args.batch_size)
        latents = mean[rows] + std[rows] * torch.randn_like(mean[rows])
        condition = pick(conditions, caption_ids[rows])
        times = method.draw_timesteps(args.batch_size)
        return method.loss(student, average, latents, torch.randn_like(latents), times, condition, nothing)

    fit([student], loss_of_batch, iterations=args.updates, learning_rate=args.learning_rate, title="LCM")
    update_average(average, student, args.ema_decay)
    return average


@torch.no_grad()
def update_average(average: UNet2DConditionModel, student: UNet2DConditionModel, decay: float) -> None:
    """average <- decay average + (1 - decay) student."""
    for mine, theirs in zip(average.parameters(), student.parameters()):
        mine.lerp_(theirs, 1 - decay)


def make_lcm_parser() -> OneLineParser:
    """Make the parser of `python -m evaluation.lcm`."""
    parser = make_parser(MODULE, __doc__)
    add = parser.add_argument
    add("--tiny_dir", type=Path, required=True, help="Folder of the tiny world, in either layout.")
    add("--output_dir", type=Path, required=True, help="Folder for the student.")
    add("--updates", type=int, required=True, help="Number of optimizer steps.")
    add("--batch_size", type=int, default=32, help="Number of samples per update (default: 32).")
    add(
        "--learning_rate",
        type=float,
        default=1e-4,
        help="Peak learning rate between the warmup and the cosine decay to zero (default: 1e-4).",
    )
    add(
        "--guidance_scale",
        type=float,
        default=2.0,
        help="Guidance scale of the teacher, fixed during training; 1 means no guidance (default: 2).",
    )
    add(
        "--ema_decay",
        type=float,
        default=0.95,
        help="Decay of the EMA, which is the training target and is published (default: 0.95, as in LCM).",
    )
    add("--seed", type=int, default=0, help="Seed for the data order, timesteps and noise (default: 0).")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Raise an EvaluationError if an option is invalid."""
    check_tiny_dir(args.tiny_dir, "--tiny_dir")
    for flag in ("updates", "batch_size"):
        if getattr(args, flag) < 1:
            raise EvaluationError(f"--{flag} {getattr(args, flag)}: give 1 or more.")
    for flag, works, allowed in (
        ("learning_rate", 0 < args.learning_rate < float("inf"), "a finite number above 0"),
        ("guidance_scale", 1 <= args.guidance_scale < float("inf"), "a finite number of at least 1"),
        ("ema_decay", 0 <= args.ema_decay < 1, "a number in [0, 1)"),
    ):
        if not works:
            raise EvaluationError(f"--{flag} {getattr(args, flag)}: give {allowed}.")


def distil_and_publish(args: argparse.Namespace, words: Sequence[str]) -> None:
    """Train the student, and write a stock repo with `LCMScheduler` and finally `lcm.json` with the command."""
    check_arguments(args)
    quiet_libraries()
    torch.manual_seed(args.seed)
    pipeline = DiffusionPipeline.from_pretrained(args.tiny_dir / "teacher")
    student = distil_student(pipeline, read_split(args.tiny_dir / "data" / "train"), args)
    pipeline.register_modules(unet=student, scheduler=LCMScheduler.from_config(pipeline.scheduler.config))
    pipeline.save_pretrained(args.output_dir)
    write_json(args.output_dir / RECORD, {"command": shlex.join([*command_name(MODULE).split(), *words])})


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process.

    Raises:
        SystemExit: the command failed; it has the exit status.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    run_command(make_lcm_parser(), words, lambda args: distil_and_publish(args, words))


if __name__ == "__main__":
    main()

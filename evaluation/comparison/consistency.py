"""Latent consistency distillation (LCM, 2310.04378) of the tiny teacher: what ADD is compared with.

    python -m evaluation.lcm --tiny_dir build/tiny --output_dir build/lcm --updates 300

A consistency function f maps any point of the teacher's ODE trajectory to its end: f(z_t, t) = c_skip(t) z_t +
c_out(t) x0(z_t, t), with f(z_0, 0) = z_0. It is trained to give at z_{t_{n+k}} what its own average gives at the
point one DDIM step of the guided teacher further down. Timesteps, c_skip and c_out are those of diffusers'
`LCMScheduler`, so the result is an ordinary repo that samples with it. The guidance scale is fixed in training,
rather than a further input of the network.
"""

import argparse
import copy
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, LCMScheduler, UNet2DConditionModel
from torch import Tensor

from evaluation.errors import EvaluationError, exit_status
from evaluation.runs.run import write_json
from evaluation.tiny.judge import check_tiny_dir, quiet_libraries
from examples.tiny.autoencoder import encode_moments
from examples.tiny.data import Split, read_split
from examples.tiny.layouts import encode_captions, pick
from examples.tiny.loop import draw, fit

HUBER = 0.001  # c of the pseudo-Huber distance, as diffusers' script has it
RECORD = "lcm.json"
Network = Callable[..., Any]  # (x_t, t, **condition) to an object with `.sample`


def predict(network: Network, scheduler: DDPMScheduler, x: Tensor, t: Tensor, condition: dict) -> tuple[Tensor, Tensor]:
    """x0 and eps `(B, C, H, W)` that a network sees in `x` at `t (B,)`."""
    return split(scheduler, network(x, t, **condition).sample, x, t)


def split(scheduler: DDPMScheduler, output: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x0 and eps that an `output` at (x, t) stands for, by the scheduler's prediction type."""
    alpha = scheduler.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - scheduler.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (x - sigma * output) / alpha, output
    if kind == "v_prediction":
        return alpha * x - sigma * output, sigma * x + alpha * output
    raise EvaluationError(f"--tiny_dir: LCM of a teacher that predicts {kind!r}; epsilon and v_prediction are known.")


@dataclass(frozen=True)
class Consistency:
    """The pieces of consistency distillation that do not change in training.

    Attributes:
        teacher: frozen.
        scheduler: the teacher's noise schedule.
        lcm: timesteps, c_skip and c_out.
        guidance_scale: of the teacher's steps; 1 is none.
    """

    teacher: Network
    scheduler: DDPMScheduler
    lcm: LCMScheduler
    guidance_scale: float

    @property
    def stride(self) -> int:
        """k, training indices between two points of the trajectory: 20 with LCM's 50 points."""
        return self.lcm.config.num_train_timesteps // self.lcm.config.original_inference_steps

    def draw_timesteps(self, count: int) -> tuple[Tensor, Tensor]:
        """t_{n+k} `(count,)`, even over the points k - 1, 2k - 1, ..., 999, and t_n, k below and at least 0."""
        points = self.lcm.config.original_inference_steps
        start = (torch.randint(points, (count,)) + 1) * self.stride - 1
        return start, (start - self.stride).clamp_min(0)

    def apply(self, network: Network, x: Tensor, t: Tensor, condition: dict) -> Tensor:
        """f(x, t) `(B, C, H, W)`, which is x itself at t = 0."""
        c_skip, c_out = self.lcm.get_scalings_for_boundary_condition_discrete(t.view(-1, 1, 1, 1))
        return c_skip * x + c_out * predict(network, self.scheduler, x, t, condition)[0]

    @torch.no_grad()
    def teacher_step(self, x: Tensor, t: Tensor, t_next: Tensor, condition: dict, nothing: dict) -> Tensor:
        """One DDIM step of the guided teacher from x at `t` to `t_next` `(B,)`; `nothing` is the empty caption's."""
        x0, eps = predict(self.teacher, self.scheduler, x, t, condition)
        if self.guidance_scale != 1:
            x0_empty, eps_empty = predict(self.teacher, self.scheduler, x, t, nothing)
            x0, eps = (b + self.guidance_scale * (a - b) for a, b in ((x0, x0_empty), (eps, eps_empty)))
        return self.scheduler.add_noise(x0, eps, t_next)  # alpha x0 + sigma eps: DDIM without its noise

    def loss(
        self,
        student: Network,
        average: Network,
        latents: Tensor,
        noise: Tensor,
        times: tuple[Tensor, Tensor],
        condition: dict,
        nothing: dict,
    ) -> Tensor:
        """Pseudo-Huber distance of f(z_{t_{n+k}}) and the average's f at the teacher's z_{t_n}, mean over elements."""
        t, t_next = times
        x = self.scheduler.add_noise(latents, noise, t)
        with torch.no_grad():
            x_next = self.teacher_step(x, t, t_next, condition, nothing)
            target = self.apply(average, x_next, t_next, condition)
        difference = self.apply(student, x, t, condition) - target
        return ((difference.square() + HUBER**2).sqrt() - HUBER).mean()


def distil(pipeline: DiffusionPipeline, train: Split, args: argparse.Namespace) -> UNet2DConditionModel:
    """Train and return the averaged student. `pipeline` is the teacher's, and stays as it is."""
    teacher = pipeline.unet.eval().requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True)
    average = copy.deepcopy(teacher)
    method = Consistency(
        teacher,
        DDPMScheduler.from_config(pipeline.scheduler.config),
        LCMScheduler.from_config(pipeline.scheduler.config),
        args.guidance_scale,
    )
    mean, std = (moment * pipeline.vae.config.scaling_factor for moment in encode_moments(pipeline.vae, train.pixels))
    captions = sorted(set(train.captions))
    conditions = encode_captions(pipeline, captions)
    caption_ids = torch.tensor([1 + captions.index(caption) for caption in train.captions])
    nothing = pick(conditions, torch.zeros(args.batch_size, dtype=torch.long))

    def loss_of_batch() -> Tensor:
        update(average, student, args.ema_decay)  # the loop has just taken a step; at the first call they are equal
        rows = draw(len(mean), args.batch_size)
        latents = mean[rows] + std[rows] * torch.randn_like(mean[rows])
        condition = pick(conditions, caption_ids[rows])
        times = method.draw_timesteps(args.batch_size)
        return method.loss(student, average, latents, torch.randn_like(latents), times, condition, nothing)

    fit([student], loss_of_batch, iterations=args.updates, learning_rate=args.learning_rate, title="LCM")
    update(average, student, args.ema_decay)
    return average


@torch.no_grad()
def update(average: UNet2DConditionModel, student: UNet2DConditionModel, decay: float) -> None:
    """average <- decay average + (1 - decay) student."""
    for mine, theirs in zip(average.parameters(), student.parameters()):
        mine.lerp_(theirs, 1 - decay)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.lcm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tiny_dir", type=Path, required=True, help="the tiny world, of either layout")
    add("--output_dir", type=Path, required=True, help="the student's repo")
    add("--updates", type=int, required=True, help="steps of the optimizer")
    add("--batch_size", type=int, default=32, help="default: 32")
    add("--learning_rate", type=float, default=1e-4, help="peak; warm-up, then a cosine to zero; default: 1e-4")
    add("--guidance_scale", type=float, default=2.0, help="of the teacher, fixed; 1 is none; default: 2")
    add("--ema_decay", type=float, default=0.95, help="of the target, which is published; default: 0.95, LCM's")
    add("--seed", type=int, default=0, help="of data order, times and noise; default: 0")
    return parser


def check(args: argparse.Namespace) -> None:
    """Raises: EvaluationError: a flag that cannot work."""
    check_tiny_dir(args.tiny_dir, "--tiny_dir")
    for flag in ("updates", "batch_size"):
        if getattr(args, flag) < 1:
            raise EvaluationError(f"--{flag} {getattr(args, flag)}: 1 or more.")
    if args.learning_rate <= 0 or args.guidance_scale < 1 or not 0 <= args.ema_decay < 1:
        raise EvaluationError(
            f"--learning_rate {args.learning_rate}, --guidance_scale {args.guidance_scale}, --ema_decay "
            f"{args.ema_decay}: they must be above 0, at least 1, and in [0, 1)."
        )


def distil_and_publish(args: argparse.Namespace, argv: list[str]) -> None:
    """A stock repo with `LCMScheduler`, and `lcm.json`, written last, with the command."""
    check(args)
    quiet_libraries()
    torch.manual_seed(args.seed)
    pipeline = DiffusionPipeline.from_pretrained(args.tiny_dir / "teacher")
    student = distil(pipeline, read_split(args.tiny_dir / "data" / "train"), args)
    pipeline.register_modules(unet=student, scheduler=LCMScheduler.from_config(pipeline.scheduler.config))
    pipeline.save_pretrained(args.output_dir)
    write_json(args.output_dir / RECORD, {"command": shlex.join(["python", "-m", "evaluation.lcm", *argv])})


def main(argv: list[str] | None = None) -> int:
    """The command."""
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser().parse_args(argv)
    return exit_status(lambda: distil_and_publish(args, argv))


if __name__ == "__main__":
    sys.exit(main())

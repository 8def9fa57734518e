"""The loss of latent consistency distillation (LCM, 2310.04378).

A consistency function f maps any point of the teacher's ODE trajectory to its end: f(z_t, t) = c_skip(t) z_t +
c_out(t) x0(z_t, t), with f(z_0, 0) = z_0. At z_{t_{n+k}} it is trained to match its moving average after one
DDIM step of the guided teacher. Timesteps, c_skip and c_out are those of diffusers' `LCMScheduler`, which is
used for sampling. The guidance scale is fixed during training instead of being an input of the network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import DDPMScheduler, LCMScheduler
from torch import Tensor

from evaluation.errors import EvaluationError

HUBER = 0.001  # c of the pseudo-Huber distance, as in diffusers' script
Network = Callable[..., Any]  # (x_t, t, **condition) to an object with `.sample`


def predict(network: Network, scheduler: DDPMScheduler, x: Tensor, t: Tensor, condition: dict) -> tuple[Tensor, Tensor]:
    """A network's predictions of x0 and eps `(B, C, H, W)` for `x` at `t (B,)`."""
    return split_prediction(scheduler, network(x, t, **condition).sample, x, t)


def split_prediction(scheduler: DDPMScheduler, output: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Convert an `output` at (x, t) to x0 and eps, according to the scheduler's prediction type."""
    alpha = scheduler.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - scheduler.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
    kind = scheduler.config["prediction_type"]
    if kind == "epsilon":
        return (x - sigma * output) / alpha, output
    if kind == "v_prediction":
        return alpha * x - sigma * output, sigma * x + alpha * output
    raise EvaluationError(f"--tiny_dir: the teacher predicts {kind!r}; LCM only supports epsilon and v_prediction.")


@dataclass(frozen=True)
class Consistency:
    """The parts of consistency distillation that do not change during training.

    Attributes:
        teacher: frozen teacher.
        scheduler: scheduler with the teacher's noise schedule.
        lcm: scheduler with timesteps, c_skip and c_out.
        guidance_scale: guidance scale of the teacher's steps; 1 means no guidance.
    """

    teacher: Network
    scheduler: DDPMScheduler
    lcm: LCMScheduler
    guidance_scale: float

    @property
    def stride(self) -> int:
        """k, the number of training indices between two points of the trajectory: 20 for LCM's 50 points."""
        return self.lcm.config["num_train_timesteps"] // self.lcm.config["original_inference_steps"]

    def draw_timesteps(self, count: int) -> tuple[Tensor, Tensor]:
        """t_{n+k} `(count,)`, uniform over the points k - 1, 2k - 1, ..., 999, and t_n = max(t_{n+k} - k, 0)."""
        points = self.lcm.config["original_inference_steps"]
        start = (torch.randint(points, (count,)) + 1) * self.stride - 1
        return start, (start - self.stride).clamp_min(0)

    def diffuse(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """alpha_t x0 + sigma_t eps `(B, C, H, W)`."""
        return self.scheduler.add_noise(x0, eps, cast(torch.IntTensor, t))

    def apply(self, network: Network, x: Tensor, t: Tensor, condition: dict) -> Tensor:
        """f(x, t) `(B, C, H, W)`, which is x itself at t = 0."""
        c_skip, c_out = self.lcm.get_scalings_for_boundary_condition_discrete(
            cast(int, t.view(-1, 1, 1, 1))  # annotated for one timestep, and plain arithmetic
        )
        return c_skip * x + c_out * predict(network, self.scheduler, x, t, condition)[0]

    @torch.no_grad()
    def teacher_step(self, x: Tensor, t: Tensor, t_next: Tensor, condition: dict, nothing: dict) -> Tensor:
        """One DDIM step of the guided teacher from x at `t` to `t_next` `(B,)`. `nothing` is the empty condition."""
        x0, eps = predict(self.teacher, self.scheduler, x, t, condition)
        if self.guidance_scale != 1:
            x0_empty, eps_empty = predict(self.teacher, self.scheduler, x, t, nothing)
            x0, eps = (b + self.guidance_scale * (a - b) for a, b in ((x0, x0_empty), (eps, eps_empty)))
        return self.diffuse(x0, eps, t_next)  # alpha x0 + sigma eps: deterministic DDIM

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
        x = self.diffuse(latents, noise, t)
        with torch.no_grad():
            x_next = self.teacher_step(x, t, t_next, condition, nothing)
            target = self.apply(average, x_next, t_next, condition)
        difference = self.apply(student, x, t, condition) - target
        return ((difference.square() + HUBER**2).sqrt() - HUBER).mean()

"""The student: a denoiser that is only evaluated at a few timesteps (paper 3.1)."""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .schedule import NoiseSchedule

# Evenly spaced up to the last index, so that 1, 2 and 4 steps with the stock trailing spacing visit them.
DEFAULT_STUDENT_TIMESTEPS = (249, 499, 749, 999)

Condition: TypeAlias = Mapping[str, "Tensor | Condition"]  # keyword arguments of a network's forward, batch first


def diffuse_student(schedule: NoiseSchedule, z0: Tensor, eps: Tensor, s: Tensor) -> Tensor:
    """The student's input x_s = alpha_s z0 + sigma_s eps, and pure noise at the last timestep.

    Zero terminal SNR (paper 3.1, after 2305.08891) either comes with a rescaled or a flow-matching schedule, whose last
    alpha is 0, or, for a schedule that ends at a small alpha, is enforced here: no trace of z0 may be left, because
    sampling starts from noise alone.

    Args:
        z0, eps: `(B, C, H, W)` latents and unit Gaussian noise.
        s: `(B,)` int student timesteps.

    Returns:
        `(B, C, H, W)` float32.
    """
    x_s = schedule.diffuse(z0, eps, s)
    is_last = (s == len(schedule) - 1).reshape(-1, 1, 1, 1)
    return torch.where(is_last, eps.float(), x_s)


def student_sample(network: nn.Module, schedule: NoiseSchedule, x_s: Tensor, s: Tensor, condition: Condition) -> Tensor:
    """x^_theta(x_s, s), the student's one-step estimate of the clean latent (paper 3.1).

    At the last timestep, an epsilon student uses the ORIGINAL finite alpha (0.068 for Stable Diffusion) although its
    input is pure noise: x0 = 14.649 n - 14.615 eps^. Stock Euler-ancestral sampling with trailing spacing computes the
    same, so training agrees with the published sampler.

    Args:
        x_s: `(B, C, H, W)` float32, from `diffuse_student`.
        s: `(B,)` int.
        condition: the network's keyword arguments.

    Returns:
        `(B, C, H, W)` float32 latents, scaled as the network sees them.
    """
    return schedule.x0(schedule.predict(network, x_s, s, condition), x_s, s)

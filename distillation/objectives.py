"""The losses of ADD. Each returns a value; the training loop owns backward, clipping and steps.

Reductions are part of the contract, because lambda and gamma are tuned for them: adversarial terms are SUMMED over the
K heads (paper Eqs. 2 and 3) and averaged over batch and tokens; distillation is averaged over batch and elements.
"""

import torch
from torch import Tensor

from .schedule import NoiseSchedule

WEIGHTINGS = ("exponential", "sds", "uniform", "nfsd")


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """sum_k E[max(0, 1 - D_k(real))] + E[max(0, 1 + D_k(fake))] (paper Eq. 3).

    Args:
        real, fake: `(B, K, N)` logits of K heads at N tokens.

    Returns:
        Scalar >= 0, mean over batch and tokens, sum over heads.
    """
    return (torch.relu(1 - real) + torch.relu(1 + fake)).mean(dim=(0, 2)).sum()


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-sum_k E[D_k(fake)] (paper Eq. 2). `fake`: `(B, K, N)`. Returns a scalar, mean over batch and tokens."""
    return -fake.mean(dim=(0, 2)).sum()


def r1_penalties(logits: Tensor, features: tuple[Tensor, ...]) -> Tensor:
    """R1 on each head's input: || d (sum of logits) / d F_k(x0) ||^2, mean over the batch (paper 3.2).

    Taking it at the features rather than the pixels leaves the frozen network out of the double backward. The graph is
    kept, so the penalty and the hinge loss share one backward.

    Args:
        logits: `(B, K, N)` of REAL images, computed from `features`.
        features: K leaves `(B, C, N)` that require grad, float32.

    Returns:
        `(K,)` >= 0, one for each tap. Their sum multiplied by gamma is the loss.
    """
    gradients = torch.autograd.grad(logits.sum(), features, create_graph=True)
    return torch.stack([g.square().sum(dim=(1, 2)).mean() for g in gradients])


def distillation_weight(schedule: NoiseSchedule, t: Tensor, weighting: str) -> Tensor:
    """c(t) of the distillation loss (paper 3.3 and appendix A).

    `exponential`: alpha_t, so that noisier targets count less. `sds` and `nfsd`: alpha_t w(t) / (2 sigma_t) with
    w(t) = sigma_t^2, for which the gradient of c ||x^_theta - x^_psi||^2 is DreamFusion's w(t) (eps^ - eps).
    `uniform`: 1. The identity of `sds` needs x_t = alpha_t x0 + sigma_t eps alone, so it holds for flow matching too.

    Args:
        schedule: the TEACHER's.
        t: `(B,)` int.

    Returns:
        `(B,)` float32.

    Raises:
        ValueError: for an unknown weighting.
    """
    alpha, sigma = schedule.alphas.to(t.device)[t], schedule.sigmas.to(t.device)[t]
    if weighting == "exponential":
        return alpha
    if weighting in ("sds", "nfsd"):
        return alpha * sigma / 2
    if weighting == "uniform":
        return torch.ones_like(alpha)
    raise ValueError(f"weighting must be one of {WEIGHTINGS}, got {weighting!r}")


def distillation_loss(x_hat: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """E[c(t) || x^_theta - sg(x^_psi) ||^2] (paper Eq. 4), the squared norm averaged over elements.

    Args:
        x_hat: `(B, ...)` student sample, latents or pixels.
        target: same shape, the teacher's; detached here.
        weight: `(B,)` c(t).

    Returns:
        Scalar >= 0, float32.
    """
    squared = (x_hat.float() - target.detach().float()).square().flatten(1).mean(dim=1)
    return (weight * squared).mean()

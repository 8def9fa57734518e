"""The losses of ADD as functions of tensors.

Their reductions must not be changed, because lambda and gamma are tuned for them: adversarial terms are SUMMED over the
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
    """R1 penalty on the input of each head: || d (sum of logits) / d F_k(x0) ||^2, mean over the batch (paper 3.2).

    With respect to the features instead of the pixels, the frozen network needs no double backward. The graph is
    retained, so the penalty and the hinge loss share one backward pass.

    Args:
        logits: `(B, K, N)` logits of REAL images, computed from `features`.
        features: K leaf tensors `(B, C, N)` that require gradients, float32.

    Returns:
        `(K,)` >= 0, one value per tap. Their sum multiplied by gamma is the loss.
    """
    gradients = torch.autograd.grad(logits.sum(), features, create_graph=True)
    return torch.stack([g.square().sum(dim=(1, 2)).mean() for g in gradients])


def distillation_weight(schedule: NoiseSchedule, t: Tensor, weighting: str) -> Tensor:
    """c(t) of the distillation loss (paper 3.3 and appendix A).

    `exponential`: alpha_t, so that noisier targets have less weight. `sds` and `nfsd`: alpha_t w(t) / (2 sigma_t) with
    w(t) = sigma_t^2, for which the gradient of c ||x^_theta - x^_psi||^2 is DreamFusion's w(t) (eps^ - eps).
    `uniform`: 1.

    Args:
        schedule: noise schedule of the TEACHER.
        t: `(B,)` int teacher timesteps.

    Returns:
        `(B,)` float32.

    Raises:
        ValueError: the weighting is unknown.
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
        target: teacher's target of the same shape; it is detached here.
        weight: `(B,)` c(t).

    Returns:
        Scalar >= 0, float32.
    """
    squared = (x_hat.float() - target.detach().float()).square().flatten(1).mean(dim=1)
    return (weight * squared).mean()

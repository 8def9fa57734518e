"""The losses of ADD as functions of tensors.

Their reductions must not be changed, because lambda and gamma are tuned for them: adversarial terms are SUMMED over the
K heads (paper Eqs. 2 and 3) and averaged over batch and tokens; distillation is averaged over batch and elements.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from discriminator import Logits

from .schedule import NoiseSchedule

WEIGHTINGS = ("exponential", "sds", "uniform", "nfsd")


def per_head(logits: Logits) -> Sequence[Tensor]:
    """K tensors `(B, N_k)`, of logits `(B, K, N)` or of such tensors already."""
    return logits.unbind(1) if isinstance(logits, Tensor) else logits


def hinge_discriminator_loss(real: Logits, fake: Logits) -> Tensor:
    """sum_k E[max(0, 1 - D_k(real))] + E[max(0, 1 + D_k(fake))] (paper Eq. 3).

    Args:
        real, fake: logits of K heads at N tokens, `(B, K, N)`, or `(B, N_k)` each.

    Returns:
        Scalar >= 0, mean over batch and tokens, sum over heads.
    """
    pairs = zip(per_head(real), per_head(fake))
    return torch.stack([(torch.relu(1 - r) + torch.relu(1 + f)).mean() for r, f in pairs]).sum()


def hinge_generator_loss(fake: Logits) -> Tensor:
    """-sum_k E[D_k(fake)] (paper Eq. 2). Logits as above. Returns a scalar, mean over batch and tokens."""
    return -torch.stack([of_head.mean() for of_head in per_head(fake)]).sum()


def r1_penalties(logits: Logits, features: tuple[Tensor, ...]) -> Tensor:
    """R1 penalty on the input of each head: || d (sum of logits) / d F_k(x0) ||^2, mean over the batch (paper 3.2).

    With respect to the features instead of the pixels, the frozen network needs no double backward. The graph is
    retained, so the penalty and the hinge loss share one backward pass.

    Args:
        logits: `(B, K, N)`, or `(B, N_k)` each, of REAL images, computed from `features`.
        features: K leaves `(B, C, N)` or `(B, C_k, h_k, w_k)` that require grad, float32.

    Returns:
        `(K,)` >= 0, one value per tap. Their sum multiplied by gamma is the loss.
    """
    total = torch.stack([of_head.sum() for of_head in per_head(logits)]).sum()
    gradients = torch.autograd.grad(total, features, create_graph=True)
    return torch.stack([g.square().flatten(1).sum(dim=1).mean() for g in gradients])


def distillation_weight(schedule: NoiseSchedule, t: Tensor, weighting: str) -> Tensor:
    """c(t) of the distillation loss (paper 3.3 and appendix A).

    `exponential`: alpha_t, so that noisier targets have less weight. `sds` and `nfsd`: alpha_t w(t) / (2 sigma_t) with
    w(t) = sigma_t^2, for which the gradient of c ||x^_theta - x^_psi||^2 is DreamFusion's w(t) (eps^ - eps).
    `uniform`: 1. The identity of `sds` needs x_t = alpha_t x0 + sigma_t eps alone, so it holds for flow matching too.

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

"""Figures for monitoring a run. Computing them does not change losses or accumulate gradients."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def gradient_norms(losses: Mapping[str, Tensor], at: Tensor, scale: float | Tensor = 1.0) -> dict[str, Tensor]:
    """The norm of the gradient of each loss with respect to `at`.

    With respect to the student's sample, this needs no backward pass through the UNet. The graphs are retained, so the
    losses can be back-propagated afterwards.

    Args:
        losses: scalars whose graphs contain `at`, multiplied by their weights.
        at: any tensor in the graph, for example x^_theta `(B, 3, P, P)`.
        scale: factor that multiplies the losses before the backward pass and divides the gradients after it, such as
            the gradient scale of fp16, without which small gradients underflow in a half-precision decoder.

    Returns:
        Detached float32 scalars by the names of the losses.
    """
    norms = {}
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss * scale, at, retain_graph=True)
        norms[name] = gradient.detach().float().norm() / scale
    return norms


def accuracy_by_timestep(logits: Tensor, is_real: bool, s: Tensor, timesteps: Sequence[int]) -> dict[int, Tensor]:
    """The fraction of the discriminator's logits with the correct sign, for each student timestep.

    Args:
        logits: `(B, K, N)` logits of either real or generated images.
        is_real: whether the images are real, so that positive logits are correct.
        s: `(B,)` int student timestep of each sample.
        timesteps: T_student.

    Returns:
        A scalar in [0, 1] for each of `timesteps`, NaN if no sample has it. The host does not wait for the device.
    """
    right = (logits > 0 if is_real else logits < 0).float().mean(dim=(1, 2))
    return {t: (right * (s == t)).sum() / (s == t).sum() for t in timesteps}

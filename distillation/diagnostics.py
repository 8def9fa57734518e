"""Figures that tell whether a run is healthy. None of them changes a loss or leaves a gradient behind."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def gradient_norms(losses: Mapping[str, Tensor], at: Tensor, scale: float | Tensor = 1.0) -> dict[str, Tensor]:
    """The norm of each loss's gradient with respect to `at`.

    Taken at the student's sample, no backward pass through the UNet is needed. The graphs are kept, so the losses can
    be back-propagated afterwards.

    Args:
        losses: scalars whose graphs contain `at`, multiplied by their weights.
        at: any tensor of the graph, for instance x^_theta `(B, 3, P, P)`.
        scale: factor by which the losses are multiplied for the backward pass, and the gradients divided by
            afterwards: fp16's gradient scale, without which small gradients vanish in a half-precision decoder.

    Returns:
        Scalars float32, detached, by the losses' names.
    """
    norms = {}
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss * scale, at, retain_graph=True)
        norms[name] = gradient.detach().float().norm() / scale
    return norms


def accuracy_by_timestep(logits: Tensor, is_real: bool, s: Tensor, timesteps: Sequence[int]) -> dict[int, Tensor]:
    """The share of the discriminator's logits that have the right sign, by the student timestep of their sample.

    Args:
        logits: `(B, K, N)` of real or of generated images.
        is_real: whether they are of real images, for which a positive logit is right.
        s: `(B,)` int student timestep of each sample.
        timesteps: T_student.

    Returns:
        A scalar in [0, 1] for each of `timesteps`, NaN where no sample has it. Nothing waits for the device.
    """
    right = (logits > 0 if is_real else logits < 0).float().mean(dim=(1, 2))
    return {t: (right * (s == t)).sum() / (s == t).sum() for t in timesteps}

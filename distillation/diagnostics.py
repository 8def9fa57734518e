"""Figures for monitoring a run. Computing them does not change losses or accumulate gradients."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from discriminator import Logits

from .objectives import per_head


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


def accuracy(logits: Logits, is_real: bool) -> Tensor:
    """The share of each sample's logits that have the right sign, `(B,)`: the mean over its heads.

    Args:
        logits: `(B, K, N)`, or `(B, N_k)` of each head.
        is_real: whether they are of real images, for which a positive logit is right.
    """
    shares = [(of_head > 0 if is_real else of_head < 0).float().mean(dim=1) for of_head in per_head(logits)]
    return torch.stack(shares).mean(dim=0)


def accuracy_by_timestep(logits: Logits, is_real: bool, s: Tensor, timesteps: Sequence[int]) -> dict[int, Tensor]:
    """The share of the discriminator's logits that have the right sign, by the student timestep of their sample.

    Args:
        logits: as in `accuracy`, of real or of generated images.
        is_real: as in `accuracy`.
        s: `(B,)` int student timestep of each sample.
        timesteps: T_student.

    Returns:
        A scalar in [0, 1] for each of `timesteps`, NaN if no sample has it. The host does not wait for the device.
    """
    right = accuracy(logits, is_real)
    return {t: (right * (s == t)).sum() / (s == t).sum() for t in timesteps}


def discriminator_figures(real: Logits, fake: Logits, s: Tensor, timesteps: Sequence[int]) -> dict[str, Tensor]:
    """Accuracies and mean logits of the discriminator, scalars by the names under which they are logged.

    Args:
        real, fake: logits of real and of generated samples, as in `accuracy`.
        s, timesteps: as in `accuracy_by_timestep`.
    """
    by_timestep = accuracy_by_timestep(fake, False, s, timesteps)
    return {
        **{f"discriminator/accuracy_fake_s{step}": value for step, value in by_timestep.items()},
        "discriminator/accuracy_real": accuracy(real, True).mean(),
        "discriminator/accuracy_fake": accuracy(fake, False).mean(),
        "discriminator/logits_real": torch.stack([of_head.mean() for of_head in per_head(real)]).mean(),
        "discriminator/logits_fake": torch.stack([of_head.mean() for of_head in per_head(fake)]).mean(),
    }

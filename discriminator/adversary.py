"""Base class of the discriminators on pixels and on latents: heads on features of real and generated samples."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Logits = Tensor | tuple[Tensor, ...]  # of K heads: `(B, K, N)`, or `(B, N_k)` each where taps differ in size


class Adversary(nn.Module):
    """Trainable heads, and the logits of real and generated samples.

    Features and logits are separate methods, because R1 (ADD, eq. 3) differentiates with respect to the features.

    Attributes:
        heads: trainable heads. In eval mode, which the student's step uses, a forward pass does not change their
            buffers (spectral norm).
        mixes: whether real and generated samples are normalized together (`mixed_batch`).
    """

    def __init__(self, heads: nn.Module, norm: str):
        """`norm` is that of `heads`, as in `heads.make_norm`."""
        super().__init__()
        self.heads, self.mixes = heads, norm == "mixed_batch"

    def logits(
        self, heads: Callable, real: tuple[Tensor, ...], fake: tuple[Tensor, ...], condition: Tensor | None
    ) -> tuple[Logits, Logits]:
        """Logits of real and of generated samples.

        Args:
            heads: heads of this discriminator, possibly wrapped by accelerate.
            real, fake: K features `(B, C, N)` or maps `(B, C_k, h_k, w_k)` each; sample i of both has the condition i.
            condition: `(B, D)` or None.

        Returns:
            For each of both, `(B, K, N)`, or K tensors `(B, N_k)` if taps differ in size.
        """
        if not self.mixes:
            return heads(real, condition), heads(fake, condition)
        # Interleaved, so that each virtual group contains as many real as generated samples.
        pairs = tuple(torch.stack([r, f], dim=1).flatten(0, 1) for r, f in zip(real, fake))
        logits = heads(pairs, None if condition is None else condition.repeat_interleave(2, dim=0))
        return _every_second(logits, 0), _every_second(logits, 1)

    def logits_of_fake(
        self, heads: Callable, real: tuple[Tensor, ...], fake: tuple[Tensor, ...], condition: Tensor | None
    ) -> Logits:
        """The logits of generated samples as in `logits`. Those of real samples are only computed if needed."""
        return self.logits(heads, real, fake, condition)[1] if self.mixes else heads(fake, condition)


def _every_second(logits: Logits, first: int) -> Logits:
    """Samples `first`, `first` + 2, ..."""
    if isinstance(logits, Tensor):
        return logits[first::2]
    return tuple(of_head[first::2] for of_head in logits)

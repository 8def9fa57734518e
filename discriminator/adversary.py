"""What the discriminators on pixels and on latents have in common: heads on features of real and generated samples."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Logits = Tensor | tuple[Tensor, ...]  # of K heads: `(B, K, N)`, or `(B, N_k)` each where taps differ in size


class Adversary(nn.Module):
    """Trainable heads, whose logits of real and generated samples are computed apart or side by side.

    Features and logits are computed apart, because R1 (ADD, eq. 3) differentiates with respect to what lies between
    them.

    Attributes:
        heads: trainable. In eval mode a forward pass leaves its buffers (spectral norm) alone, which is the mode for
            the student's step.
        mixes: whether real and generated samples are normalized together.
    """

    def __init__(self, heads: nn.Module, norm: str):
        """`norm` is that of `heads`, as in `heads.make_norm`."""
        super().__init__()
        self.heads, self.mixes = heads, norm == "mixed_batch"

    def logits(
        self, heads: Callable, real: tuple[Tensor, ...], fake: tuple[Tensor, ...], condition: Tensor | None
    ) -> tuple[Logits, Logits]:
        """Logits of real and of generated images.

        Args:
            heads: of this discriminator, perhaps wrapped for distribution.
            real, fake: K features `(B, C, ...)` each; sample i of both has the condition i.
            condition: `(B, D)` or None.
        """
        if not self.mixes:
            return heads(real, condition), heads(fake, condition)
        # Side by side, so that every virtual group holds as many of one kind as of the other.
        pairs = tuple(torch.stack([r, f], dim=1).flatten(0, 1) for r, f in zip(real, fake))
        logits = heads(pairs, None if condition is None else condition.repeat_interleave(2, dim=0))
        return _every_second(logits, 0), _every_second(logits, 1)

    def logits_of_fake(
        self, heads: Callable, real: tuple[Tensor, ...], fake: tuple[Tensor, ...], condition: Tensor | None
    ) -> Logits:
        """The second half of `logits`, without the work of the first where that is not needed for it."""
        return self.logits(heads, real, fake, condition)[1] if self.mixes else heads(fake, condition)


def _every_second(logits: Logits, first: int) -> Logits:
    """Samples `first`, `first` + 2, ..."""
    if isinstance(logits, Tensor):
        return logits[first::2]
    return tuple(of_head[first::2] for of_head in logits)

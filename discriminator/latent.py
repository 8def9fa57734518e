"""The latent discriminator: heads on the teacher's own features of diffused latents (LADD, 2403.12015).

Nothing is decoded, so images of any size and shape can be judged. Shapes: B samples, K taps with maps
`(B, C_k, h_k, w_k)` of several sizes, N_k = h_k w_k, D entries of a condition.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from discriminator.adversary import Adversary
from discriminator.heads import Head, run_heads
from discriminator.unet_features import UNetFeatures

NOISE_LEVEL_DIM = 128  # entries of the embedding of t^
LONGEST_PERIOD = 10_000  # of the embedding's sinusoids, in timesteps


def noise_level_embedding(t: Tensor, dim: int = NOISE_LEVEL_DIM) -> Tensor:
    """Cosines and sines of `t` (B,) at `dim / 2` frequencies, `(B, dim)` float32 of unit length."""
    half = dim // 2
    exponents = torch.arange(half, device=t.device, dtype=torch.float32) / half
    angles = t.float()[:, None] * LONGEST_PERIOD**-exponents
    return torch.cat([angles.cos(), angles.sin()], dim=1) / math.sqrt(half)


class LatentHeads(nn.Module):
    """K independent heads on maps, all of the latent discriminator that is trained. An fp32 island, as
    `DiscriminatorHeads` is."""

    def __init__(self, widths: Sequence[int], condition_dim: int, norm: str = "virtual_batch"):
        """`widths` C_k of the taps, `condition_dim` D of the condition, `norm` of a head."""
        super().__init__()
        self.condition_dim = condition_dim
        self.heads = nn.ModuleList(Head(width, condition_dim, norm, dims=2) for width in widths)

    def forward(self, features: tuple[Tensor, ...], condition: Tensor) -> tuple[Tensor, ...]:
        """Logits of K maps `(B, C_k, h_k, w_k)` under `condition` (B, D): K tensors `(B, N_k)`, float32.

        Raises:
            ValueError: the number of features or the condition's size is not what the heads were made for.
        """
        return tuple(run_heads(self.heads, features, condition, self.condition_dim))


class LatentDiscriminator(Adversary):
    """Features of the frozen teacher at a noise level t^, and heads conditioned on t^ and the caption by projection.

    Attributes:
        feature_network: the teacher's UNet up to its deepest tap; not a submodule, because others own it.
        heads: trainable.
    """

    def __init__(self, feature_network: UNetFeatures, caption_dim: int, norm: str = "virtual_batch"):
        """`caption_dim` is the size of the pooled caption, 0 for heads that only know t^; `norm` as in `make_norm`."""
        super().__init__(LatentHeads(feature_network.widths, NOISE_LEVEL_DIM + caption_dim, norm), norm)
        self.feature_network = feature_network

    def features(self, z_t: Tensor, t: Tensor, condition: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """F_k of diffused latents, see `UNetFeatures`. Gradients flow to `z_t` only."""
        return self.feature_network(z_t, t, condition)

    def condition(self, caption: Tensor | None, t: Tensor) -> Tensor:
        """What the heads are told, `(B, D)`: the embedding of `t` (B,) and the pooled `caption`, unit vectors."""
        level = noise_level_embedding(t)
        return level if caption is None else torch.cat([level, caption.float()], dim=1)

"""The trainable heads of the discriminator (StyleGAN-T, section 3.2; ADD, section 3.2).

There is one independent head for each tap of the feature network, which computes a logit for each token.
Shapes: B samples, C channels of the feature network, N tokens, K heads, D dimensions of the condition.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

PROJECTION_DIM = 64
KERNEL_SIZE = 9  # of the residual block, in tokens
MAP_KERNEL_SIZE = 3  # the same on maps: 3 x 3
GROUP_SIZE = 8  # samples that share the statistics of virtual batch normalization


def virtual_batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, group_size: int = GROUP_SIZE, eps: float = 1e-5
) -> Tensor:
    """Batch normalization within groups of `group_size` consecutive samples.

    Mean and biased variance of each channel are computed over the samples and tokens of a group; there are no running
    statistics. The effect of the normalization therefore does not depend on the batch size of a device. If
    `group_size` does not divide B, the last group is smaller; the statistics of a single sample are over its tokens.

    Args:
        x: `(B, C, N)`.
        weight: `(C,)`.
        bias: `(C,)`.
        group_size: number of samples in a group.
        eps: value that is added to the variance.

    Returns:
        `(B, C, N)`.
    """
    groups = [F.batch_norm(g, None, None, weight, bias, training=True, eps=eps) for g in x.split(group_size)]
    return torch.cat(groups)


class VirtualBatchNorm(nn.Module):
    """`virtual_batch_norm` with a learned scale and shift for each of `channels`."""

    def __init__(self, channels: int, group_size: int = GROUP_SIZE, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.group_size = group_size
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `(B, C, N)`; the same in training and evaluation mode."""
        return virtual_batch_norm(x, self.weight, self.bias, self.group_size, self.eps)


NORMS = ("virtual_batch", "mixed_batch", "group")
GROUPS = 8  # of channels, for group norm


def make_norm(norm: str, channels: int) -> nn.Module:
    """Make the normalization of the heads: `virtual_batch` (StyleGAN-T), `mixed_batch`, or `group`.

    With `virtual_batch`, a group contains only real or only generated samples, so batch norm removes the difference of
    their means, and with one or two samples per device almost all information. `mixed_batch` is the same norm over
    groups of four real and four generated samples (see `Discriminator.logits`), which keeps this difference. `group` is
    GroupNorm, which normalizes each sample separately, so its logits do not depend on other samples.

    Raises:
        ValueError: the norm is unknown.
    """
    if norm in ("virtual_batch", "mixed_batch"):
        return VirtualBatchNorm(channels)
    if norm == "group":
        return nn.GroupNorm(GROUPS, channels)
    raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")


class Block(nn.Module):
    """Spectrally normalized convolution, normalization, LeakyReLU 0.2.

    Along tokens it is circular (StyleGAN-T); a map has borders, and zeros are around them.
    """

    def __init__(self, channels: int, kernel_size: int, norm: str = "virtual_batch", dims: int = 1):
        """`dims` is 1 for tokens `(B, C, N)` and 2 for maps `(B, C, h, w)`."""
        super().__init__()
        convolution, padding = (nn.Conv1d, "circular") if dims == 1 else (nn.Conv2d, "zeros")
        # No bias: the normalization that follows subtracts it, so its gradient would be rounding noise,
        # which Adam scales up to full steps.
        conv = convolution(channels, channels, kernel_size, padding=kernel_size // 2, padding_mode=padding, bias=False)
        # One power iteration a forward pass, and none in eval mode: the heads in eval mode are left untouched by
        # the student's step.
        self.conv = spectral_norm(conv, n_power_iterations=1)
        self.norm = make_norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, N)` or `(B, C, h, w)` to the same shape."""
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)


class Head(nn.Module):
    """The discriminator of one tap: a logit for every token or place, by projection when there is a condition.

    Projection (1802.05637): logit = <W c + b, out> / sqrt(64), where out is the classifier's 64 channels at the token.
    """

    def __init__(self, width: int, condition_dim: int = 0, norm: str = "virtual_batch", dims: int = 1):
        """`width` C of the features, `condition_dim` D of the condition, 0 for none; `norm` as `make_norm`; `dims` 1
        for tokens, 2 for maps."""
        super().__init__()
        convolution, kernel_size = (nn.Conv1d, KERNEL_SIZE) if dims == 1 else (nn.Conv2d, MAP_KERNEL_SIZE)
        self.pointwise = Block(width, kernel_size=1, norm=norm, dims=dims)
        self.neighborhood = Block(width, kernel_size=kernel_size, norm=norm, dims=dims)
        self.classifier = spectral_norm(convolution(width, PROJECTION_DIM if condition_dim else 1, kernel_size=1))
        self.projection = None
        if condition_dim:
            # W ~ N(0, 1). An input with D unit-variance entries would need a gain of 1 / sqrt(D). c consists of unit
            # vectors, whose entries have variance 1/D, so the two factors cancel. With torch's default initialization,
            # logits would start near 0.01 and take long to reach the hinge's margin.
            self.projection = nn.Linear(condition_dim, PROJECTION_DIM)
            nn.init.normal_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits `(B, N)` of features `x`, tokens (B, C, N) or a map (B, C, h, w) with N = h w, under `condition`
        (B, D), made of L2-normalized vectors.

        Raises:
            ValueError: there are too few tokens for the circular convolution.
        """
        if x.ndim == 3 and x.shape[-1] < KERNEL_SIZE // 2:
            raise ValueError(
                f"the heads' kernel of {KERNEL_SIZE} needs at least {KERNEL_SIZE // 2} tokens, got {x.shape[-1]}; "
                "use a larger input size or a smaller patch size"
            )
        x = self.pointwise(x)
        x = (self.neighborhood(x) + x) / math.sqrt(2)
        out = self.classifier(x).flatten(2)
        if self.projection is None:
            return out.squeeze(1)
        return torch.einsum("bd,bdn->bn", self.projection(condition), out) / math.sqrt(PROJECTION_DIM)


class DiscriminatorHeads(nn.Module):
    """K independent heads, the trainable part of the discriminator.

    They always compute in float32, with autocast disabled. Do not compile them, because R1 needs a double backward,
    which compiled graphs do not support.
    """

    def __init__(self, width: int, num_taps: int, condition_dim: int = 0, norm: str = "virtual_batch"):
        """`width` is C and `num_taps` is K of the feature network, `condition_dim` is D (0: unconditional)."""
        super().__init__()
        self.condition_dim = condition_dim
        self.heads = nn.ModuleList(Head(width, condition_dim, norm) for _ in range(num_taps))

    def forward(self, features: tuple[Tensor, ...], condition: Tensor | None = None) -> Tensor:
        """Float32 logits `(B, K, N)` of K feature tensors `(B, C, N)` given `condition` (B, D) or None.

        Raises:
            ValueError: the number of features or the size of the condition differs from that of the heads.
        """
        return torch.stack(run_heads(self.heads, features, condition, self.condition_dim), dim=1)


def run_heads(
    heads: nn.ModuleList, features: tuple[Tensor, ...], condition: Tensor | None, condition_dim: int
) -> list[Tensor]:
    """Logits `(B, N)` of each head for its features, in float32 whatever the run's precision.

    Raises:
        ValueError: the number of features or the condition's size is not what the heads were made for.
    """
    size = 0 if condition is None else condition.shape[-1]
    if len(features) != len(heads) or size != condition_dim:
        raise ValueError(
            f"the heads were made for {len(heads)} feature tensors and a condition of size {condition_dim} (0: None), "
            f"got {len(features)} and {size}"
        )
    with torch.autocast(features[0].device.type, enabled=False):
        condition = None if condition is None else condition.float()
        return [head(x.float(), condition) for head, x in zip(heads, features)]

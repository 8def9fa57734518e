"""The trainable heads of the discriminator (StyleGAN-T, section 3.2; ADD, section 3.2).

One independent head for every tap of the feature network; each gives a logit for every token.
Shapes: B samples, C channels of the feature network, N tokens, K heads, D entries of the condition.
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

    Mean and biased variance of each channel are taken over the samples and tokens of a group; there are no running
    statistics. The strength of the normalization so does not depend on the batch size of a device. When
    `group_size` does not divide B, the rest is one smaller group; a single sample has its tokens for statistics.

    Args:
        x: `(B, C, N)`.
        weight: `(C,)`.
        bias: `(C,)`.
        group_size: samples in a group.
        eps: added to the variance.

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
    """The heads' normalization: `virtual_batch` (StyleGAN-T), `mixed_batch`, or `group`.

    With `virtual_batch` a group holds only real or only generated samples, so batch norm takes away the difference of
    their means, and on a device with one or two samples nearly all there is to see. With `mixed_batch` it is the same
    norm over groups of four real and four generated samples (see `Discriminator.logits`), where that difference stays.
    `group` is GroupNorm over each sample by itself: a sample's logits do not depend on its neighbours.

    Raises:
        ValueError: an unknown norm.
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

    Projection (1802.05637): logit = <W c + b, out> / sqrt(64), out the classifier's 64 channels at the token.
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
            # W ~ N(0, 1). An input of D unit-variance entries would need the gain 1 / sqrt(D); c is made of unit
            # vectors, whose entries have variance 1/D, and the two factors cancel. With torch's default, logits
            # start near 0.01 and Adam moves the parameters too little for the hinge to be reached soon.
            self.projection = nn.Linear(condition_dim, PROJECTION_DIM)
            nn.init.normal_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits `(B, N)` of features `x`, tokens (B, C, N) or a map (B, C, h, w) with N = h w, under `condition`
        (B, D), made of L2-normalized vectors.

        Raises:
            ValueError: too few tokens for the circular convolution.
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
    """K independent heads. This is all of the discriminator that is trained.

    They are an fp32 island: autocast is off inside, whatever the features' dtype. Leave them uncompiled, because R1
    differentiates their gradient and compiled graphs have no double backward.
    """

    def __init__(self, width: int, num_taps: int, condition_dim: int = 0, norm: str = "virtual_batch"):
        """`width` C and `num_taps` K of the feature network, `condition_dim` D (0: unconditional), `norm` of a head."""
        super().__init__()
        self.condition_dim = condition_dim
        self.heads = nn.ModuleList(Head(width, condition_dim, norm) for _ in range(num_taps))

    def forward(self, features: tuple[Tensor, ...], condition: Tensor | None = None) -> Tensor:
        """Logits `(B, K, N)`, float32, of K feature tensors `(B, C, N)` under `condition` (B, D) or None.

        Raises:
            ValueError: the number of features or the condition's size is not what the heads were made for.
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

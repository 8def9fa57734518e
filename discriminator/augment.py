"""DiffAugment (2006.10738): differentiable augmentation of real and generated images, in both players' steps.

Images are `(B, 3, H, W)`, nominally in [-1, 1]. The color operations may exceed that range; values are not clamped,
because clamped values have no gradient. The parameters of each operation are given per sample, `(B,)`.
"""

import torch
from torch import Tensor

MAX_TRANSLATION = 0.125  # of the image's side
CUTOUT_SIZE = 0.2  # of the image's side
AUGMENT_NUMBERS = 7  # random numbers per image


def _per_sample(parameter: Tensor) -> Tensor:
    return parameter.view(-1, 1, 1, 1)


def brightness(images: Tensor, offset: Tensor) -> Tensor:
    """Add `offset` (B,) to every pixel."""
    return images + _per_sample(offset)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Scale each pixel's distance from its grey value (mean over channels) by `factor` (B,)."""
    grey = images.mean(dim=1, keepdim=True)
    return (images - grey) * _per_sample(factor) + grey


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale each value's distance from the image's mean (over channels and pixels) by `factor` (B,)."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * _per_sample(factor) + mean


def translate(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shift by whole pixels, `down` and `right` (B,) int64 of either sign, and fill with 0."""
    height, width = images.shape[-2:]
    row = torch.arange(height, device=images.device) - down[:, None]  # (B, H): source of each row
    column = torch.arange(width, device=images.device) - right[:, None]
    # A cyclic gather reads each pixel exactly once, so the scatter in the backward pass has no collisions and is
    # deterministic. Pixels that wrapped around are masked afterwards.
    shifted = images.gather(2, (row % height)[:, None, :, None].expand_as(images))
    shifted = shifted.gather(3, (column % width)[:, None, None, :].expand_as(images))
    inside_rows = (row >= 0) & (row < height)
    inside_columns = (column >= 0) & (column < width)
    return shifted.masked_fill(~(inside_rows[:, None, :, None] & inside_columns[:, None, None, :]), 0.0)


def cutout(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Set a box of `size` (height, width) with its corner at `top`, `left` (B,) to 0. It may extend over the border."""
    row = torch.arange(images.shape[-2], device=images.device)
    column = torch.arange(images.shape[-1], device=images.device)
    in_rows = (row >= top[:, None]) & (row < top[:, None] + size[0])  # (B, H)
    in_columns = (column >= left[:, None]) & (column < left[:, None] + size[1])  # (B, W)
    return images.masked_fill(in_rows[:, None, :, None] & in_columns[:, None, None, :], 0.0)


def _integer(uniform: Tensor, low: int, high: int) -> Tensor:
    """Map `uniform` in [0, 1) to integers low..high inclusive."""
    # The largest number of torch.rand is 1 - 2**-24; n times it never rounds up to n in float32, so the result is
    # at most `high`.
    return (low + uniform * (high - low + 1)).floor().long()


def diff_augment(images: Tensor, uniform: Tensor) -> Tensor:
    """Apply all five operations, with separate random parameters for each sample.

    brightness +U(-0.5, 0.5); saturation x U(0, 2); contrast x U(0.5, 1.5); translation by up to 12.5 % of the side;
    one cutout of 20 % x 20 % whose center is uniform over the image (it may extend over the border).

    Args:
        images: `(B, 3, H, W)` in [-1, 1], float32.
        uniform: `(B, AUGMENT_NUMBERS)` random numbers in [0, 1). They are an argument so that the augmentation of an
            image does not depend on its batch or on a global random state.

    Returns:
        `(B, 3, H, W)`, differentiable with respect to `images`.
    """
    height, width = images.shape[-2:]
    uniform = uniform.t()
    color = uniform[:3].to(images.dtype)
    images = brightness(images, color[0] - 0.5)
    images = saturation(images, color[1] * 2.0)
    images = contrast(images, color[2] + 0.5)

    max_down, max_right = int(MAX_TRANSLATION * height), int(MAX_TRANSLATION * width)
    down = _integer(uniform[3], -max_down, max_down)
    right = _integer(uniform[4], -max_right, max_right)
    images = translate(images, down, right)

    box = (max(1, round(CUTOUT_SIZE * height)), max(1, round(CUTOUT_SIZE * width)))
    top = _integer(uniform[5], 0, height - 1) - box[0] // 2
    left = _integer(uniform[6], 0, width - 1) - box[1] // 2
    return cutout(images, top, left, box)

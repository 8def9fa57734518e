"""Preprocessing of images for a feature network: crop or resize, and normalization."""

import torch.nn.functional as F
from torch import Tensor

CROP_PROBABILITY = 0.5


def resize(images: Tensor, size: int) -> Tensor:
    """Resize `(B, 3, H, W)` to `(B, 3, size, size)`, by area averaging to shrink and bilinear interpolation to enlarge.

    With area averaging, every pixel of the student's image gets a gradient, and there is no aliasing. To enlarge,
    area averaging would repeat pixels and add edges that photographs do not have; bilinear interpolation does not.
    """
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if min(height, width) < size:
        return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return F.interpolate(images, size=(size, size), mode="area")


def fit_to_input_size(images: Tensor, size: int, crop: tuple[float, float, float]) -> Tensor:
    """Fit images to the feature network's input by a random crop or by resizing (StyleGAN-T, section 3.2).

    Images larger than `size` are cropped with `CROP_PROBABILITY`, at one random position for the whole batch, so that
    the discriminator sees fine details; otherwise they are resized, so that it sees the whole image.

    Args:
        images: `(B, 3, H, W)`, any range.
        size: height and width of the result in pixels.
        crop: decision to crop, vertical and horizontal position, uniform in [0, 1). They are Python numbers, because
            slicing with device tensors would make the host wait. Ignored unless the images are larger than `size`.

    Returns:
        `(B, 3, size, size)`.
    """
    height, width = images.shape[-2:]
    larger = min(height, width) >= size and max(height, width) > size
    if larger:
        coin, down, right = crop
        if coin < CROP_PROBABILITY:
            top, left = int(down * (height - size + 1)), int(right * (width - size + 1))
            return images[..., top : top + size, left : left + size]
    return resize(images, size)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Standardize `(B, 3, H, W)` in [0, 1] by the per-channel `mean` and `std`, each `(3,)`."""
    return (images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)

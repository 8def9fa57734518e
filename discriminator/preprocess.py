"""From an image of any size to what a feature network was trained on."""

import torch.nn.functional as F
from torch import Tensor

CROP_PROBABILITY = 0.5


def resize(images: Tensor, size: int) -> Tensor:
    """Bring `(B, 3, H, W)` to `(B, 3, size, size)`: area averaging when shrinking, bilinear when growing.

    Area averaging weighs every pixel, so the gradient reaches every pixel of the student's image, and nothing aliases.
    Growing by it would repeat pixels in blocks whose edges no photograph has; bilinear interpolation adds none.
    """
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if min(height, width) < size:
        return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return F.interpolate(images, size=(size, size), mode="area")


def fit_to_input_size(images: Tensor, size: int, crop: tuple[float, float, float]) -> Tensor:
    """Fit images to the feature network's input by a random crop or by resizing (StyleGAN-T, section 3.2).

    Images larger than `size` become, with `CROP_PROBABILITY`, one random crop of that size (the same for the whole
    batch), which shows the discriminator the finest detail; otherwise they are resized, which shows it the whole.

    Args:
        images: `(B, 3, H, W)`, any range.
        size: side of the square result, in pixels.
        crop: coin, vertical and horizontal place, uniform in [0, 1). Python numbers, because a shape that depended on
            a device's number would make the host wait for it. Ignored unless the images are larger than `size`.

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

"""Operations on image batches `(B, 3, H, W)`, values in [-1, 1]; random ones use torch's global generator."""

import torch
import torch.nn.functional as F
from transformers import BitImageProcessor

from examples.tiny.models import IMAGE_SIZE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """`(B, 3, H, W)` in [-1, 1] to ImageNet's mean 0 and deviation 1, the input of every vision tower here."""
    mean, std = pixels.new_tensor(IMAGENET_MEAN).view(3, 1, 1), pixels.new_tensor(IMAGENET_STD).view(3, 1, 1)
    return (pixels / 2 + 0.5 - mean) / std


def make_processor(image_size: int = IMAGE_SIZE) -> BitImageProcessor:
    """What `normalize` does, as the `preprocessor_config.json` that stands beside a model on the Hub."""
    return BitImageProcessor(
        size={"height": image_size, "width": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    )


def uniform(batch: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """One number a sample, `(B, 1, 1, 1)`."""
    return low + (high - low) * torch.rand(len(batch), 1, 1, 1)


def warp(pixels: torch.Tensor, degrees: float, scale: float, shift_px: float) -> torch.Tensor:
    """Rotate, scale and shift each image at random, up to the given amounts; edges are repeated."""
    angle = uniform(pixels, -degrees, degrees).flatten().deg2rad()
    zoom = 1 + uniform(pixels, -scale, scale).flatten()
    move = (2 * torch.rand(len(pixels), 2) - 1) * shift_px * 2 / pixels.shape[-1]
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    theta = torch.stack([cos, -sin, move[:, 0], sin, cos, move[:, 1]], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def shift(pixels: torch.Tensor, amount: int) -> torch.Tensor:
    """Move the batch by one random whole number of pixels, up to `amount` each way; edges are repeated."""
    size = pixels.shape[-1]
    top, left = torch.randint(0, 2 * amount + 1, (2,)).tolist()
    return F.pad(pixels, (amount,) * 4, mode="replicate")[..., top : top + size, left : left + size]


def blur(pixels: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur with a deviation of `sigma (B, 1, 1, 1)` pixels of its own for each image."""
    batch, channels, height, width = pixels.shape
    offsets = torch.arange(-4, 5, device=pixels.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma.view(-1, 1).clamp_min(1e-3) ** 2))
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    rows = pixels.reshape(1, batch * channels, height, width)
    rows = F.conv2d(F.pad(rows, (4, 4, 0, 0), mode="replicate"), kernel[:, None, None, :], groups=len(kernel))
    rows = F.conv2d(F.pad(rows, (0, 0, 4, 4), mode="replicate"), kernel[:, None, :, None], groups=len(kernel))
    return rows.view(batch, channels, height, width)


def patchify(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """`(B, 3, H, W)` to `(B, N, 3 * size * size)`, patches in raster order."""
    return F.unfold(pixels, size, stride=size).transpose(1, 2)

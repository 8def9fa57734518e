"""Decoding of image files to RGB, and the resize, flip and crop of training images."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from training.data.files import MAX_ENCODED_BYTES, read_file

# Of the many formats that Pillow supports, only these are used: EPS would start Ghostscript, and scientific formats do
# not contain photographs.
Image.init()
PHOTO_FORMATS = tuple(f for f in ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000") if f in Image.OPEN)


def decode_image(value: Any, folders: Sequence[str] | None = None) -> Image.Image:
    """Decode a cell of an undecoded `datasets` image column to an upright RGB image.

    The EXIF orientation is applied, transparency is composited on white, 16-bit greyscale is scaled to 8 bits, and the
    first frame of an animation is used.

    Args:
        value: `{"bytes": bytes | None, "path": str | None}`, a path or URL, or the file's bytes. See
            `training.data.files` for the paths that are allowed.
        folders: absolute paths of the folders that a local path must be in; None allows all folders.

    Raises:
        Exception: exceptions of many types, because decoders raise many types on damaged files; also for files larger
            than `MAX_ENCODED_BYTES` and images above Pillow's limit against decompression bombs
            (`PIL.Image.MAX_IMAGE_PIXELS`, 89 million pixels).
    """
    with warnings.catch_warnings():
        # Up to twice its limit, Pillow only warns, but such an image would use too much memory in a worker.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(_read(value, folders)), formats=PHOTO_FORMATS)
        return _to_rgb(ImageOps.exif_transpose(image))


def _read(value: Any, folders: Sequence[str] | None) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return read_file(value, folders)
    if not isinstance(value, bytes):
        raise ValueError(f"no image: the column holds {type(value).__name__}, not a path or bytes")
    if len(value) > MAX_ENCODED_BYTES:
        raise ValueError(f"larger than {MAX_ENCODED_BYTES} bytes")
    return value


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("a floating-point image, the value range of which is unknown")
    if image.mode.startswith("I"):  # 16-bit greyscale, which convert() would clip to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return image.convert("RGB")


def resize_short_side(image: Image.Image, resolution: int) -> Image.Image:
    """Resize (Lanczos) to a short side of `resolution` pixels; the long side is rounded down, as in torchvision.

    Raises:
        ValueError: the aspect ratio is so extreme that the result would exceed Pillow's limit of pixels.
    """
    short = min(image.size)
    width, height = (resolution if side == short else int(resolution * side / short) for side in image.size)
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"an image of {image.width} x {image.height} pixels is too long to resize")
    return image.resize((width, height), Image.Resampling.LANCZOS)


def flip_and_crop(
    image: Image.Image, resolution: int, generator: torch.Generator, center_crop: bool, random_flip: bool
) -> tuple[Image.Image, tuple[int, int]]:
    """Flip horizontally with p = 0.5 if `random_flip`, then crop a square of `resolution` pixels, central or random.

    Returns the square and its top left corner `(y, x)` in the flipped image, as used in SDXL's conditioning.
    """
    if random_flip and torch.rand((), generator=generator) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    room = (image.height - resolution, image.width - resolution)
    if center_crop:
        y, x = (round(r / 2) for r in room)
    else:
        y, x = (int(torch.randint(r + 1, (), generator=generator)) for r in room)
    return image.crop((x, y, x + resolution, y + resolution)), (y, x)


def to_pixels(image: Image.Image) -> torch.Tensor:
    """Convert an RGB image to a float32 tensor `(3, H, W)` in [-1, 1]."""
    array = np.array(image, dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous() / 127.5 - 1

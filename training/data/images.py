"""Image files to RGB pixels: decoding whatever the web holds, then the resize, flip and crop of training."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from training.data.files import MAX_ENCODED_BYTES, read_file

# Pillow knows some fifty formats; EPS would start Ghostscript, and the scientific ones hold no photographs.
Image.init()
PHOTO_FORMATS = tuple(f for f in ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000") if f in Image.OPEN)


def decode_image(value: Any, folders: Sequence[str] | None = None) -> Image.Image:
    """Decode an undecoded cell of a `datasets` image column to an upright RGB image.

    The EXIF orientation is applied, transparency is composited on white, 16-bit greyscale is scaled to 8 bits. The
    first frame of an animation is taken.

    Args:
        value: `{"bytes": bytes | None, "path": str | None}`, a path or URL, or the file's bytes. Which paths are read
            is documented in `training.data.files`.
        folders: absolute paths of the folders that a local path must be in; None allows all.

    Raises:
        Exception: many kinds, since decoders raise many on damaged files; also for anything larger than
            `MAX_ENCODED_BYTES` or Pillow's limit against decompression bombs (`PIL.Image.MAX_IMAGE_PIXELS`, 89
            million pixels).
    """
    with warnings.catch_warnings():
        # Pillow only warns up to twice its limit; such an image would still take the memory of a worker.
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
        raise ValueError("a floating-point image: its range is not known")
    if image.mode.startswith("I"):  # 16-bit greyscale, which convert() would clip to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return image.convert("RGB")


def resize_short_side(image: Image.Image, resolution: int) -> Image.Image:
    """Resize (Lanczos) to a short side of `resolution` pixels; the long side is rounded down, as torchvision does.

    Raises:
        ValueError: the aspect ratio is so extreme that the result would pass Pillow's limit of pixels.
    """
    short = min(image.size)
    width, height = (resolution if side == short else int(resolution * side / short) for side in image.size)
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"an image of {image.width} x {image.height} pixels is too long to resize")
    return image.resize((width, height), Image.Resampling.LANCZOS)


def flip_and_crop(
    image: Image.Image, resolution: int, generator: torch.Generator, center_crop: bool, random_flip: bool
) -> tuple[Image.Image, tuple[int, int]]:
    """Mirror with p = 0.5 if `random_flip`, then cut a square of `resolution` pixels at the centre or at random.

    Returns the square and its top left corner `(y, x)` in the mirrored image, as SDXL's conditioning has it.
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
    """An RGB image as float32 `(3, H, W)` in [-1, 1]."""
    array = np.array(image, dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous() / 127.5 - 1

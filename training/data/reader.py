"""Reading of a training sample from a row: caption, decoding, crop; and counting of unusable rows."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distillation.noise import derive_seed
from training.data.errors import DataError, one_line, reason
from training.data.images import decode_image, flip_and_crop, resize_short_side, to_pixels
from training.data.order import SampleKey

logger = logging.getLogger(__name__)

MAX_REPLACED = 100  # consecutive unusable samples; at this number, a wrong column or a missing disk is likely


class UnusableSample(Exception):
    """A row whose image cannot be decoded or whose caption is missing."""


@dataclass(frozen=True)
class SampleReader:
    """Makes a training sample from a row. Its randomness is a function of `seed`, the epoch and the sample.

    Attributes:
        image_column, caption_column: names of the columns.
        resolution: side of the cropped square in pixels; the short side is resized to it.
        center_crop: whether to crop at the center instead of at random.
        random_flip: whether to flip horizontally with p = 0.5.
        seed: seed of the whole run.
        folders: absolute paths of the folders that a row's local image path must be in; None allows any regular file.
            See `training.data.sources.image_folders`.
    """

    image_column: str
    caption_column: str
    resolution: int
    center_crop: bool = False
    random_flip: bool = False
    seed: int = 0
    folders: tuple[str, ...] | None = None

    def __call__(self, row: dict[str, Any], key: SampleKey, sample_id: int) -> dict[str, Any]:
        """Read `row`, which has the id `sample_id`, for the position `key` of the stream.

        Returns: `pixels` float32 (3, resolution, resolution) in [-1, 1]; `caption`; the integers `sample_id` and
        `position`; `original_size` (h, w) of the upright image, `crop_top_left` (y, x) after resizing and
        `target_size` (h, w), all in pixels, for SDXL's conditioning; `enlarged`, whether the image is smaller than the
        resolution and was enlarged.

        Raises:
            UnusableSample: the row cannot be used; the message has the reason.
        """
        generator = torch.Generator().manual_seed(derive_seed(self.seed, key.epoch, key.index))
        caption = choose_caption(row[self.caption_column], generator)
        try:
            image = decode_image(row[self.image_column], self.folders)
            resized = resize_short_side(image, self.resolution)
        except Exception as error:  # decoders raise many types of errors on damaged files
            raise UnusableSample(f"{_name_of(row[self.image_column])}: {reason(error)}") from error
        square, corner = flip_and_crop(resized, self.resolution, generator, self.center_crop, self.random_flip)
        return {
            "pixels": to_pixels(square),
            "caption": caption,
            "sample_id": sample_id,
            "position": key.position,
            "original_size": (image.height, image.width),
            "crop_top_left": corner,
            "target_size": (self.resolution, self.resolution),
            "enlarged": min(image.size) < self.resolution,
        }


def choose_caption(cell: Any, generator: torch.Generator) -> str:
    """The caption of a cell: a string, or one string of a list, drawn uniformly from those that are not blank.

    Raises:
        UnusableSample: the cell has no caption.
    """
    options = caption_options(cell)
    if not options:
        raise UnusableSample(f"no caption: the column holds {cell!r:.60}")
    return options[int(torch.randint(len(options), (), generator=generator))] if len(options) > 1 else options[0]


def caption_options(cell: Any) -> list[str]:
    """All captions of a cell, a string or a list of strings, except those that are blank or not valid Unicode."""
    options = [cell] if isinstance(cell, str) else cell if isinstance(cell, Sequence) else []
    return [option for option in options if is_text(option)]


def is_text(value: Any) -> bool:
    """Whether `value` is a string that can be tokenized: not blank, and without lone surrogates (from broken JSON)."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)


def _name_of(cell: Any) -> str:
    return one_line(str(cell.get("path") or "image")) if isinstance(cell, dict) else f"{cell!r:.60}"


class Replacements:
    """Counts consecutive unusable samples, and raises an error at a limit."""

    def __init__(self, reader: SampleReader):
        self.reader = reader
        self.reasons: list[str] = []

    def add(self, sample_id: int, error: UnusableSample, limit: int = MAX_REPLACED) -> None:
        """Count one unusable sample.

        Raises:
            DataError: `limit` is reached.
        """
        logger.info("sample %d replaced: %s", sample_id, error)
        self.reasons.append(f"{sample_id} ({error})")
        if len(self.reasons) >= limit:
            raise DataError(
                f"--image_column {self.reader.image_column} --caption_column {self.reader.caption_column}: "
                f"{len(self.reasons)} samples in a row cannot be used. The first: {'; '.join(self.reasons[:3])}. "
                "Check these files and the two columns"
            )

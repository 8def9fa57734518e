"""Image and caption pairs: loading the data set, reading samples, batching them for one process."""

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader

from training.data.order import GlobalBatchSampler, SampleKey
from training.data.reader import MAX_REPLACED, Replacements, SampleReader, UnusableSample
from training.data.streams import StreamingImageTextDataset

logger = logging.getLogger(__name__)

Rows = datasets.Dataset | datasets.IterableDataset


def load_image_text_dataset(
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    split: str = "train",
    image_column: str = "image",
    caption_column: str = "text",
    max_train_samples: int | None = None,
    streaming: bool = False,
    cache_dir: str | None = None,
    seed: int = 0,
    revision: str | None = None,
) -> Rows:
    """Load the rows to train on, with their two columns only and the images left undecoded.

    The arguments mean what the flags of diffusers' training scripts mean. `max_train_samples` keeps that many rows
    drawn with `seed` (of a stream: the first ones). `revision` pins the version of a Hub data set.

    Raises:
        ValueError: there is no such folder, split or column; the message names the flag and what there is instead.
    """
    if dataset_name is None and train_data_dir is None:
        raise ValueError("there is nothing to train on: pass --dataset_name or --train_data_dir")
    if max_train_samples is not None and max_train_samples < 1:
        raise ValueError(f"--max_train_samples is {max_train_samples}: it must be at least 1")
    if dataset_name is None and not Path(train_data_dir).is_dir():
        raise ValueError(f"--train_data_dir {train_data_dir}: no such folder")
    splits = datasets.load_dataset(
        dataset_name or "imagefolder",
        dataset_config_name,
        data_dir=train_data_dir,
        cache_dir=cache_dir,
        streaming=streaming,
        revision=revision,
    )
    source = f"--dataset_name {dataset_name}" if dataset_name else f"--train_data_dir {train_data_dir}"
    if split not in splits:
        raise ValueError(f"{source} has no split '{split}', only: {', '.join(splits)}")
    if len(splits) > 1:
        logger.info("%s: training on split '%s' of %s", source, split, ", ".join(splits))
    rows = splits[split]
    _check_columns(rows, image_column, caption_column, source)
    # Undecoded, a damaged file is our reader's to replace; other columns might hold images that datasets decodes.
    rows = rows.select_columns([image_column, caption_column])
    if rows.features is not None:
        rows = rows.cast_column(image_column, datasets.Image(decode=False))
    if max_train_samples is None:
        return rows
    if streaming:
        return rows.take(max_train_samples)
    return rows.shuffle(seed=seed).select(range(min(max_train_samples, len(rows))))


def _check_columns(rows: Rows, image_column: str, caption_column: str, source: str) -> None:
    columns = rows.column_names or list(next(iter(rows), {}))  # a stream of JSON lines doesn't know its columns
    for flag, column in (("--image_column", image_column), ("--caption_column", caption_column)):
        if column not in columns:
            mend = "" if source.startswith("--dataset_name") else "; captions stand in the folder's metadata.jsonl"
            raise ValueError(f"{flag} {column}: {source} has no such column, only: {', '.join(columns)}{mend}")


class ImageTextDataset(torch.utils.data.Dataset):
    """Samples of a map-style data set, by `SampleKey`; see `SampleReader` for their fields.

    An unusable sample is replaced by the next usable row, and `replaced` says how many were passed over.
    """

    def __init__(self, rows: datasets.Dataset, reader: SampleReader):
        self.rows = rows
        self.reader = reader

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """Raises: RuntimeError: 100 rows in a row, or all there are, cannot be used."""
        unusable = Replacements(self.reader)
        while True:
            index = (key.index + len(unusable.reasons)) % len(self)
            try:
                sample = self.reader(self.rows[index], key, index)
            except UnusableSample as error:
                unusable.add(index, error, min(MAX_REPLACED, len(self)))
            else:
                return sample | {"replaced": len(unusable.reasons)}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Batch samples.

    Returns: `pixels` (B, 3, R, R); `captions`, B strings; `sample_ids` and `positions` int64 (B,); `original_size`,
    `crop_top_left` and `target_size` int64 (B, 2); `replaced`, an int: samples passed over in this batch.
    """
    batch = {key: torch.tensor([s[key] for s in samples]) for key in ("original_size", "crop_top_left", "target_size")}
    return batch | {
        "pixels": torch.stack([s["pixels"] for s in samples]),
        "captions": [s["caption"] for s in samples],
        "sample_ids": torch.tensor([s["sample_id"] for s in samples]),
        "positions": torch.tensor([s["position"] for s in samples]),
        "replaced": sum(s["replaced"] for s in samples),
    }


def make_dataloader(
    rows: Rows,
    reader: SampleReader,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_position: int = 0,
    num_workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """Batches of one process, without end, from `start_position` (samples consumed by all processes before).

    Not to be `prepare`d by accelerate: each process asks for its own slice.

    Raises:
        ValueError: an argument is out of range, or the data set is smaller than one batch of all processes.
    """
    options = {
        "collate_fn": collate,
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator(),  # else the loader takes a number from the generator of the training itself
    }
    if isinstance(rows, datasets.Dataset):
        sampler = GlobalBatchSampler(len(rows), batch_size, rank, world_size, reader.seed, start_position)
        return iter(
            DataLoader(ImageTextDataset(rows, reader), batch_sampler=sampler, num_workers=num_workers, **options)
        )
    stream = StreamingImageTextDataset(rows, reader, batch_size, rank, world_size, start_position)
    shards = stream.epoch_rows(0).num_shards
    if num_workers > shards:
        logger.warning("--dataloader_num_workers %d: lowered to the %d shards of the stream", num_workers, shards)
        num_workers = shards
    loader = DataLoader(stream, batch_size=batch_size, num_workers=num_workers, **options)
    # Workers resume at a whole round; what is left of the round was consumed before the checkpoint.
    return itertools.islice(loader, stream.start_batch % max(1, num_workers), None)

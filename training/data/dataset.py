"""Image-caption data sets: loading the rows, reading samples, and batching them for one process."""

import itertools
import logging
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import pyarrow as pa
import torch
from torch.utils.data import DataLoader

from training.data.columns import check_columns
from training.data.errors import DataError, reason
from training.data.order import GlobalBatchSampler, SampleKey
from training.data.reader import MAX_REPLACED, Replacements, SampleReader, UnusableSample
from training.data.sources import Rows, Source, first_row, image_folders, load_split
from training.data.streams import StreamingImageTextDataset
from training.options.options import Options

logger = logging.getLogger(__name__)

ENLARGED_AFTER = 1000  # samples after which a process warns about enlarged images; fewer if the epoch is shorter


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
    """Load the rows to train on, with only the image and caption columns. Images are not decoded.

    The arguments have the meaning of the flags of the same names; `training.data.sources` lists the supported kinds of
    folders. `max_train_samples` selects that many rows at random with `seed`, or the first ones of a stream. `revision`
    pins the version of a Hub data set.

    Raises:
        DataError: the data set cannot be loaded, or it has no such split or column. The message names the flag and the
            fix.
    """
    if dataset_name is None and train_data_dir is None:
        raise DataError("there is no training data: pass --dataset_name or --train_data_dir")
    if max_train_samples is not None and max_train_samples < 1:
        raise DataError(f"--max_train_samples is {max_train_samples}: it must be at least 1")
    source = Source(dataset_name, dataset_config_name, train_data_dir, revision, cache_dir)
    rows = load_split(source, split, image_column, caption_column, streaming)
    # For a stream of JSON lines, `column_names` is None.
    check_columns(rows.column_names or list(first_row(rows, source)), image_column, caption_column, str(source))
    # Images are decoded by `SampleReader`, which can replace damaged ones. Other columns are dropped because they might
    # contain images, which `datasets` would decode.
    rows = rows.select_columns([image_column, caption_column])
    if rows.features is not None:
        try:
            rows = rows.cast_column(image_column, datasets.Image(decode=False))
        except (TypeError, ValueError, pa.ArrowException) as error:
            raise DataError(
                f"--image_column {image_column}: {source} has no images in this column ({reason(error)}); pass another "
                "column"
            ) from error
    if max_train_samples is None:
        return rows
    if not isinstance(rows, datasets.Dataset):
        return rows.take(max_train_samples)
    return rows.shuffle(seed=seed).select(range(min(max_train_samples, len(rows))))


def load_rows(options: Options, seed: int) -> Rows:
    """Load the rows that a run trains on; see `load_image_text_dataset`."""
    data = options.data
    return load_image_text_dataset(
        dataset_name=data.dataset_name,
        dataset_config_name=data.dataset_config_name,
        train_data_dir=data.train_data_dir,
        split=data.dataset_split,
        image_column=data.image_column,
        caption_column=data.caption_column,
        max_train_samples=data.max_train_samples,
        streaming=data.streaming,
        cache_dir=options.models.cache_dir,
        seed=seed,
        revision=data.dataset_revision,
    )


def make_reader(options: Options, seed: int) -> SampleReader:
    """Make the reader of a run's samples."""
    data = options.data
    source = Source(
        data.dataset_name, data.dataset_config_name, data.train_data_dir, data.dataset_revision,
        options.models.cache_dir,
    )  # fmt: skip
    return SampleReader(
        data.image_column, data.caption_column, data.resolution, data.center_crop, data.random_flip, seed,
        image_folders(source),
    )  # fmt: skip


class ImageTextDataset(torch.utils.data.Dataset):
    """Map-style data set that is indexed by `SampleKey`; see `SampleReader` for the fields of a sample.

    An unusable sample is replaced by the next usable row; the field `replaced` is the number of skipped rows.
    """

    def __init__(self, rows: datasets.Dataset, reader: SampleReader):
        self.rows = rows
        self.reader = reader

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """Read a sample.

        Raises:
            DataError: 100 consecutive rows, or all rows of a smaller data set, cannot be used.
        """
        unusable = Replacements(self.reader)
        while True:
            index = (key.index + len(unusable.reasons)) % len(self)
            try:
                sample = self.reader(self._row(index), key, index)
            except UnusableSample as error:
                unusable.add(index, error, min(MAX_REPLACED, len(self)))
            else:
                return sample | {"replaced": len(unusable.reasons)}

    def _row(self, index: int) -> dict[str, Any]:
        try:
            return self.rows[index]
        except (ValueError, OSError) as error:  # a string that is not UTF-8, a missing file
            raise UnusableSample(f"the row cannot be read: {reason(error)}") from error


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Batch samples.

    Returns: `pixels` (B, 3, R, R); `captions`, B strings; `sample_ids` and `positions` int64 (B,); `original_size`,
    `crop_top_left` and `target_size` int64 (B, 2); and two integers: `replaced`, the number of rows that were skipped,
        and `enlarged`, the number of images smaller than the resolution.
    """
    batch = {key: torch.tensor([s[key] for s in samples]) for key in ("original_size", "crop_top_left", "target_size")}
    return batch | {
        "pixels": torch.stack([s["pixels"] for s in samples]),
        "captions": [s["caption"] for s in samples],
        "sample_ids": torch.tensor([s["sample_id"] for s in samples]),
        "positions": torch.tensor([s["position"] for s in samples]),
        "replaced": sum(s["replaced"] for s in samples),
        "enlarged": sum(s["enlarged"] for s in samples),
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
    """Endless batches of one process, from `start_position` (the number of samples that all processes have consumed).

    The loader must not be passed to `Accelerator.prepare`, because each process already reads its own slice. Rank 0
    warns once if images are smaller than the resolution.

    Raises:
        DataError: the data set is smaller than one batch of all processes, or a stream cannot resume at this position;
            while reading, too many consecutive samples cannot be used.
        ValueError: another argument is out of range.
    """
    options = {
        "num_workers": num_workers,
        "collate_fn": collate,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": ignore_interrupt,
        "generator": torch.Generator(),  # otherwise the loader draws from the global generator of the training
    }
    if isinstance(rows, datasets.Dataset):
        sampler = GlobalBatchSampler(len(rows), batch_size, rank, world_size, reader.seed, start_position)
        batches = read_batches(DataLoader(ImageTextDataset(rows, reader), batch_sampler=sampler, **options))
        epoch = len(rows) // world_size
    else:
        stream = StreamingImageTextDataset(rows, reader, batch_size, rank, world_size, start_position)
        shards = stream.epoch_rows(0).num_shards
        if num_workers > shards:
            logger.warning("--dataloader_num_workers %d: lowered to the %d shards of the stream", num_workers, shards)
            options["num_workers"] = num_workers = shards
        batches = read_batches(DataLoader(stream, batch_size=batch_size, **options))
        # Workers resume at a full round of batches; the first batches of the round were consumed before the checkpoint.
        batches = itertools.islice(batches, stream.start_batch % max(1, num_workers), None)
        epoch = ENLARGED_AFTER
    return _warn_of_enlarged(batches, min(epoch, ENLARGED_AFTER), reader.resolution) if rank == 0 else batches


def read_batches(loader: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the batches of a `DataLoader`.

    Raises:
        DataError: a sample cannot be read; its message is one line even if it is raised in a worker process.
    """
    try:
        yield from loader
    except DataError as error:  # torch puts the worker's traceback before the message
        raise DataError(str(error).rsplit(f"{DataError.__name__}: ", 1)[-1].strip()) from error


def ignore_interrupt(worker_id: int) -> None:
    """Ignore Ctrl-C in a worker, which also receives it. The main process ends the run after a checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _warn_of_enlarged(batches: Iterator[dict[str, Any]], after: int, resolution: int) -> Iterator[dict[str, Any]]:
    """Yield `batches`, and warn once after `after` samples if any of them were enlarged."""
    seen = enlarged = 0
    for batch in batches:
        if seen < after:
            seen, enlarged = seen + len(batch["captions"]), enlarged + batch["enlarged"]
            if seen >= after and enlarged:
                logger.warning(
                    "%d of the first %d images (%.0f %%) are smaller than --resolution %d and were enlarged, so the "
                    "student learns their blur: remove them from the data set, or lower --resolution",
                    enlarged, seen, 100 * enlarged / seen, resolution,
                )  # fmt: skip
        yield batch

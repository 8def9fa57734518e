"""Loading of data sets from the Hub, from image folders, WebDataset shards and saved data sets.

`--dataset_name` is a data set on the Hub, a local one, or one of the loaders of `datasets` (json, csv, parquet, arrow,
imagefolder, webdataset), which reads the files in `--train_data_dir`. `--train_data_dir` alone is one of

- a folder of images with metadata or text files (see `training.data.image_folder`), or a zipped one with metadata;
- a folder of WebDataset shards (`.tar`), whose columns are the extensions of the files in them, for example
  `--image_column jpg --caption_column txt`;
- a folder that was written by `datasets.Dataset.save_to_disk`.

Subfolders or files that are named after splits (`train`, `test`, ...) are splits, as defined by `datasets`.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import config as datasets_config
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from huggingface_hub import constants

from training.data.errors import DataError, reason
from training.data.image_folder import is_image, read_image_folder

logger = logging.getLogger(__name__)

Rows = datasets.Dataset | datasets.IterableDataset


LOADERS = ("json", "csv", "parquet", "arrow", "imagefolder", "webdataset")  # they read the files in --train_data_dir
FOLDER_SHARDS = 64  # shards of a streamed image folder: the maximum number of processes times workers


@dataclass(frozen=True)
class Source:
    """The flags that name a data set: `--dataset_name`, `--dataset_config_name`, `--train_data_dir` and so on."""

    name: str | None = None
    config: str | None = None
    folder: str | None = None
    revision: str | None = None
    cache_dir: str | None = None

    def __str__(self) -> str:
        flags = (("--dataset_name", self.name), ("--train_data_dir", self.folder))
        return " ".join(f"{flag} {value}" for flag, value in flags if value is not None)

    @property
    def is_local(self) -> bool:
        """Whether the data set consists of local files instead of being on the Hub."""
        return self.name is None or self.name in LOADERS or os.path.exists(self.name)


def count_rows(rows: Rows) -> int | None:
    """How many rows there are; None for a stream, whose length is unknown."""
    return None if isinstance(rows, datasets.IterableDataset) else len(rows)


def image_folders(source: Source) -> tuple[str, ...] | None:
    """The folders that local image paths must be in, for `SampleReader`: the caches, for a data set on the Hub.

    None for a local data set, which may name any local file, as lists of images often do.
    """
    if source.is_local:
        return None
    folders = (source.cache_dir, datasets_config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)
    return tuple(os.path.abspath(folder) for folder in folders if folder is not None)


def load_split(source: Source, split: str, image_column: str, caption_column: str, streaming: bool = False) -> Rows:
    """Load all rows of a split.

    Args:
        source: the data set.
        split: name of the split.
        image_column, caption_column: names of the columns; for image folders, only these columns are read.
        streaming: whether to return a `datasets.IterableDataset`.

    Raises:
        DataError: the data set cannot be loaded, or it has no such split.
    """
    if source.folder is not None and not os.path.isdir(source.folder):
        raise DataError(f"--train_data_dir {source.folder}: there is no such folder")
    place = Path(source.name or source.folder or "")
    if any((place / name).is_file() for name in ("dataset_dict.json", "state.json")):
        rows = _load_saved(source, place, split)
        return _to_stream(rows) if streaming else rows
    if source.folder is not None and source.name in (None, "imagefolder", "webdataset"):
        return _load_folder(source, source.folder, split, image_column, caption_column, streaming)
    return _load(source, split, str(source.name), streaming, data_dir=source.folder)


def first_row(rows: Rows, source: Source) -> dict[str, Any]:
    """The first row of a stream.

    Raises:
        DataError: the row cannot be read, or the stream is empty.
    """
    with _one_line_errors(source):
        row = next(iter(rows), None)
    if row is None:
        raise DataError(f"{source}: the split has no rows; give another data set or --dataset_split")
    return row


def _load_folder(
    source: Source, folder: str, split: str, image_column: str, caption_column: str, streaming: bool
) -> Rows:
    # The builder is only used to find the files and the splits that they belong to.
    with _one_line_errors(source):
        builder = datasets.load_dataset_builder("imagefolder", data_dir=folder, cache_dir=source.cache_dir)
    found = {str(name): paths for name, paths in (builder.config.data_files or {}).items()}
    files = [str(path) for path in _choose(found, split, source)]
    endings = {os.path.splitext(path)[1].lower() for path in files}
    has_images = any(is_image(path) for path in files)
    if source.name == "webdataset" or (source.name is None and ".tar" in endings and not has_images):
        shards = [path for path in files if path.endswith(".tar")]
        if not shards:
            raise DataError(f"{source}: there are no .tar files in the folder; give the folder of the shards")
        return _load(source, split, "webdataset", streaming, data_files={split: shards})
    if ".zip" in endings:
        return _load(source, split, "imagefolder", streaming, data_dir=folder)
    rows = read_image_folder(files, image_column, caption_column, str(source))
    return _to_stream(rows) if streaming else rows


def _load(source: Source, split: str, name: str, streaming: bool, **places: Any) -> Rows:
    with _one_line_errors(source):
        splits = datasets.load_dataset(
            name,
            source.config,
            cache_dir=source.cache_dir,
            streaming=streaming,
            revision=None if source.is_local else source.revision,
            **places,
        )
    return _choose(splits, split, source)


def _load_saved(source: Source, folder: Path, split: str) -> datasets.Dataset:
    with _one_line_errors(source):
        saved = datasets.load_from_disk(str(folder))
    splits: Mapping[Any, Any] = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    return _choose(splits, split, source).with_format(None)


def _choose(splits: Mapping[Any, Any], split: str, source: Source) -> Any:
    if split not in splits:
        names = [str(name) for name in splits]
        raise DataError(
            f"--dataset_split {split}: {source} has no such split, only: {', '.join(names)}; "
            f"pass --dataset_split {names[0]}"
        )
    if len(splits) > 1:
        logger.info("%s: training on split '%s' of %s", source, split, ", ".join(map(str, splits)))
    return splits[split]


def _to_stream(rows: datasets.Dataset) -> datasets.IterableDataset:
    return rows.to_iterable_dataset(num_shards=max(1, min(len(rows), FOLDER_SHARDS)))


@contextmanager
def _one_line_errors(source: Source) -> Iterator[None]:
    """Context manager that turns the many errors of `datasets` and its readers into a one-line `DataError`."""
    try:
        yield
    except DataError:
        raise
    except EmptyDatasetError as error:
        raise DataError(f"{source}: there are no files in the folder; add images and a metadata.jsonl") from error
    except DataFilesNotFoundError as error:
        raise DataError(
            f"{source}: there are no files that datasets can read; pass a folder of images as --train_data_dir"
        ) from error
    except DatasetNotFoundError as error:
        raise DataError(
            f"{source}: there is no such data set ({reason(error)}); check the name, and log in with `hf auth login` "
            "if it is private or gated"
        ) from error
    except ConnectionError as error:
        raise DataError(
            f"{source}: the Hub cannot be reached ({reason(error)}); check the connection and HF_HUB_OFFLINE, or pass "
            "a local folder as --train_data_dir"
        ) from error
    except Exception as error:
        raise DataError(f"{source}: cannot be loaded ({reason(error)}); fix the files or the flag") from error

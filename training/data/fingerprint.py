"""Fingerprint of the training data, to detect that a resumed run uses other data."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

CHUNK = 10_000  # rows


def dataset_fingerprint(rows: datasets.Dataset | datasets.IterableDataset) -> str | None:
    """Hash the rows in their order: the name and size in bytes of each image, and its captions.

    The hash is the same in every process and, for images in a folder or inside the rows, on every machine: names are
    relative to the common folder of the images, and the cache and modification times do not matter. It changes if rows
    are added, removed or reordered, if another `max_train_samples` or seed selects other rows, and if an image is
    replaced by one of another size. Images are not opened; a million files take seconds on a local disk.

    Args:
        rows: result of `training.data.dataset.load_image_text_dataset`.

    Returns: 64 hexadecimal digits; None for a stream, whose content is unknown before it is read. Compare its name,
    revision and split instead.
    """
    if not isinstance(rows, datasets.Dataset):
        return None
    digest = hashlib.sha256()
    with ThreadPoolExecutor(16) as pool:  # on a network disk, reading the size of a file takes milliseconds
        for name, feature in sorted(rows.features.items()):
            column = rows.data.column(name)
            is_image = isinstance(feature, datasets.Image) and pa.types.is_struct(column.type)
            chunks = [array.slice(i, CHUNK) for array in column.chunks for i in range(0, len(array), CHUNK)]
            digest.update(name.encode())
            read = partial(_images, start=_common_folder(column)) if is_image else _values
            for values in pool.map(read, chunks):
                # Each value is followed by a comma, so that the hash does not depend on the chunks of the table.
                digest.update((json.dumps(values, default=str)[1:-1] + ", ").encode())
    if rows._indices is not None:  # the rows of a shuffled or selected data set, as indices into the table
        digest.update(rows._indices.column(0).to_numpy().tobytes())
    return digest.hexdigest()


def _values(chunk: pa.Array) -> list[Any]:
    return chunk.to_pylist()


def _images(chunk: pa.StructArray, start: str) -> list[tuple[str | None, int | None]]:
    paths = chunk.field("path").to_pylist()
    sizes = pc.call_function("binary_length", [chunk.field("bytes")]).to_pylist()
    return [
        (path and path.removeprefix(start), _size(path) if size is None else size) for path, size in zip(paths, sizes)
    ]


def _size(path: str | None) -> int | None:
    try:
        return None if path is None or "://" in path else os.stat(path).st_size
    except (OSError, ValueError):
        return None


def _common_folder(column: pa.ChunkedArray) -> str:
    ends = [pc.call_function("min_max", [array.field("path")]).as_py() for array in column.chunks]
    paths = [path for end in ends for path in end.values() if path is not None]
    if not paths or "://" in paths[0] or not os.path.isabs(min(paths)):
        return ""
    return os.path.commonpath([os.path.dirname(path) for path in (min(paths), max(paths))]).rstrip("/") + "/"

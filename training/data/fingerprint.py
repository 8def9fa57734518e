"""A fingerprint of the data that a run trains on, by which a resumed run on other data can be refused."""

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
    """A hash of the rows in their order: the name and size in bytes of each image, and its captions.

    It is equal in every process and, for images in a folder or inside of the rows, on every machine: names count from
    the images' common folder on, and neither the cache nor the times of files matter. It changes if rows are added,
    removed or reordered, if another `max_train_samples` or seed selects others, and if an image is replaced by one of
    another size. No image is opened; a million files take seconds on a local disk.

    Args:
        rows: what `training.data.dataset.load_image_text_dataset` returns.

    Returns: 64 hexadecimal digits; None for a stream, which is not known before it is read: its name, revision and
    split have to be compared instead.
    """
    if not isinstance(rows, datasets.Dataset):
        return None
    digest = hashlib.sha256()
    with ThreadPoolExecutor(16) as pool:  # on a network disk asking for a size takes milliseconds
        for name, feature in sorted(rows.features.items()):
            column = rows.data.column(name)
            is_image = isinstance(feature, datasets.Image) and pa.types.is_struct(column.type)
            chunks = [array.slice(i, CHUNK) for array in column.chunks for i in range(0, len(array), CHUNK)]
            digest.update(name.encode())
            read = partial(_images, start=_common_folder(column)) if is_image else _values
            for values in pool.map(read, chunks):
                # A comma ends each value, so that the hash does not depend on where the table's chunks end.
                digest.update((json.dumps(values, default=str)[1:-1] + ", ").encode())
    if rows._indices is not None:  # of a shuffled or selected data set: its rows' places in the table, in order
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

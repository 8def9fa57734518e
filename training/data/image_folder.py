"""Reader of image folders with captions in a metadata file or in a text file beside each image.

`datasets` also reads such folders, but fails on one damaged line. This reader keeps a damaged line as a row without
image or caption, so that training replaces and counts it like any other unusable row.
"""

import csv
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from training.data.columns import check_columns
from training.data.errors import DataError, one_line, reason
from training.data.files import read_file
from training.data.images import PHOTO_FORMATS
from training.data.reader import caption_options, is_text

logger = logging.getLogger(__name__)

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
EXTENSIONS = {extension for extension, kind in Image.registered_extensions().items() if kind in PHOTO_FORMATS}
MAX_CAPTION_BYTES = 1024**2  # of one text file

Row = tuple[str | None, str | list[str] | None, str | None]  # image path, caption or captions, problem


def is_image(path: str) -> bool:
    """Whether the file name has the extension of a supported image format."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def read_image_folder(
    files: Sequence[str], image_column: str = "image", caption_column: str = "text", source: str = "--train_data_dir"
) -> datasets.Dataset:
    """Read the images and captions in `files`.

    Metadata files (`metadata.jsonl`, `.csv` or `.parquet`) name the images in a column `file_name`, relative to the
    folder of the metadata file, and have a string or a list of strings in the caption column. If there is no metadata
    file, the captions of an image are in a `.txt` file of the same name, as for kohya's scripts: each non-blank line is
    one caption.

    Args:
        files: absolute local paths.
        image_column: "image" for the column `file_name` of the metadata; X for `X_file_name`.
        caption_column: caption column of the metadata.
        source: flag and value that name the folder, for messages.

    Returns: a data set with the columns `image_column`, undecoded paths, and `caption_column`. An image name outside of
    the folder, a caption that is not text and a line that cannot be parsed are None; a warning counts them.

    Raises:
        DataError: there are no images, no captions, no such column, or no usable row.
    """
    metadata = [path for path in files if os.path.basename(path) in METADATA_NAMES]
    if metadata:
        rows = _read_metadata(metadata, image_column, caption_column, source)
    else:
        rows = _read_text_files(files, source)
    problems = [problem for _, _, problem in rows if problem is not None]
    if problems:
        text = f"{source}: {len(problems)} of {len(rows)} rows cannot be used; the first: {one_line(problems[0])}"
        if len(problems) == len(rows):
            raise DataError(f"{text}. Correct the files, or pass another --caption_column than {caption_column}")
        logger.warning("%s. They will be replaced by the next usable row and counted", text)
    return _to_dataset(rows, image_column, caption_column)


def _read_metadata(paths: Sequence[str], image_column: str, caption_column: str, source: str) -> list[Row]:
    names = {"file_name": "image"}  # field of the metadata: column
    records = []
    for path in sorted(paths):
        for place, record in _records(path, source):
            records.append((os.path.dirname(path), place, record))
            if isinstance(record, dict):
                names |= {key: key.removesuffix("_file_name") for key in record if key not in names}
    if not records:
        raise DataError(f"{source}: {one_line(paths[0])} is empty; add a line with `file_name` and a caption per image")
    found = {key for _, _, record in records if isinstance(record, dict) for key in record}
    if not found:
        raise DataError(f"{source}: no line of the metadata can be read; the first: {records[0][1]}: {records[0][2]}")
    check_columns([names[key] for key in names if key in found], image_column, caption_column, source)
    key = next(key for key, column in names.items() if column == image_column and key in found)
    return [_to_row(folder, place, record, key, caption_column) for folder, place, record in records]


def _to_row(folder: str, place: str, record: dict[str, Any] | str, key: str, caption_column: str) -> Row:
    if not isinstance(record, dict):
        return None, None, f"{place}: {record}"
    name, cell = record.get(key), record.get(caption_column)
    image, problem = None, None
    if not isinstance(name, str) or not name or not is_text(name):
        problem = f"{place}: `{key}` is {name!r:.60}, not the name of a file"
    elif "://" in name or os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        problem = f"{place}: `{key}` is {name!r:.200}, which is not inside the metadata's folder"
    else:
        image = os.path.join(folder, os.path.normpath(name))
    options = caption_options(cell)
    if not options:
        return image, None, problem or f"{place}: the caption in `{caption_column}` is {cell!r:.60}, not text"
    return image, options if isinstance(cell, list) else options[0], problem


def _records(path: str, source: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yield the location and content of each line. The content of an invalid line is a description of the problem."""
    name, read = one_line(path), {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[os.path.splitext(path)[1]]
    number = 0
    try:
        for number, record in read(path):
            yield f"{name} line {number}", record
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise DataError(f"{source}: {name} cannot be read after line {number}: {reason(error)}") from error


def _jsonl(path: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield number, f"not a line of JSON ({reason(error)})"
            else:
                yield number, record if isinstance(record, dict) else f"not a JSON object but {record!r:.60}"


def _csv(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Bytes that are not UTF-8 become surrogates, which make only the caption with them unusable.
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = csv.DictReader(file, restkey="", restval=None)
        for record in lines:
            record.pop("", None)  # cells beyond the header
            yield lines.line_num, record


def _parquet(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
        for record in batch.to_pylist():
            number += 1
            yield number, record


def _read_text_files(files: Sequence[str], source: str) -> list[Row]:
    images, names = sorted(path for path in files if is_image(path)), set(files)
    if not images:
        raise DataError(
            f"{source}: there are no images in the folder; add images with a metadata.jsonl (fields file_name and "
            "text) or a .txt file beside each image. Pass other kinds of data sets as --dataset_name"
        )
    texts = [os.path.splitext(path)[0] + ".txt" for path in images]
    if names.isdisjoint(texts):
        tables = [path for path in files if path.endswith((".jsonl", ".csv", ".json", ".parquet"))]
        fix = f"rename {one_line(tables[0])} to metadata{os.path.splitext(tables[0])[1]}" if tables else "add one"
        raise DataError(
            f"{source}: the {len(images)} images have no captions: there is neither a metadata.jsonl (or .csv, "
            f".parquet; fields file_name and text) nor a .txt file beside each image; {fix}"
        )
    with ThreadPoolExecutor(16) as pool:  # on a network disk, opening a small file takes milliseconds
        captions = list(pool.map(lambda path: _read_text(path) if path in names else None, texts))
    return [
        (image if is_text(image) else None, options or None, None if options else f"{text}: no caption")
        for image, text, options in zip(images, texts, captions)
    ]


def _read_text(path: str) -> list[str]:
    try:
        text = read_file(path, limit=MAX_CAPTION_BYTES).decode("utf-8-sig")
    except (OSError, ValueError):
        return []
    return [line.strip() for line in text.splitlines() if is_text(line)]


def _to_dataset(rows: Sequence[Row], image_column: str, caption_column: str) -> datasets.Dataset:
    paths = pa.array([image for image, _, _ in rows], pa.string())
    captions = [caption for _, caption, _ in rows]
    if any(isinstance(caption, list) and len(caption) > 1 for caption in captions):
        captions = [[caption] if isinstance(caption, str) else caption for caption in captions]
        texts, feature = pa.array(captions, pa.list_(pa.string())), datasets.List(datasets.Value("string"))
    else:
        captions = [caption[0] if isinstance(caption, list) else caption for caption in captions]
        texts, feature = pa.array(captions, pa.string()), datasets.Value("string")
    images = pa.StructArray.from_arrays([pa.nulls(len(rows), pa.binary()), paths], ["bytes", "path"])
    features = datasets.Features({image_column: datasets.Image(decode=False), caption_column: feature})
    table = pa.table({image_column: images, caption_column: texts})
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features))

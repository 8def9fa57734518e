"""Real images with captions, as an image folder: scikit-learn's handwritten digits, or any folder of your own.

Both end in the same layout, which `datasets.load_dataset("imagefolder", data_dir=...)` reads:
`train/{metadata.jsonl,*.png}` and `test/{metadata.jsonl,*.png}`, columns `file_name`, `text`, `label`.
"""

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from evaluation.tiny.split import COLUMNS
from examples.tiny.models import IMAGE_SIZE

if TYPE_CHECKING:
    import datasets

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS_HELD_OUT = 500  # of 1,797
FOLDER_HELD_OUT = 0.2
MAX_LABELS = 1000
MIN_IMAGES = 10
MAX_VALUES = 200  # of an attribute


@dataclass(frozen=True)
class Example:
    """One captioned image: `image` is RGB and square; `attributes` is what else is known of it, by name."""

    image: Image.Image
    text: str
    label: str
    attributes: dict[str, str] = field(default_factory=dict)


# --- what a scan looks like, measured -------------------------------------------------------------


def stroke_width(ink: np.ndarray) -> float:
    """Mean width of the strokes of `ink (H, W)` (0 paper .. 1 ink), in pixels of the scan.

    A stroke of length L and width w has the area L*w and, either side of it, edges of length 2L; the total
    variation of an image is the length of its edges, so w = 2 * area / total variation, exact for straight bars.
    """
    padded = np.pad(ink, 1)
    rise_y, rise_x = np.diff(padded, axis=0)[:, :-1], np.diff(padded, axis=1)[:-1]
    return float(2 * padded.sum() / np.hypot(rise_y, rise_x).sum())


def slant(ink: np.ndarray) -> float:
    """Lean of `ink (H, W)` in degrees from upright, positive to the right: the shear that best explains its second
    moments, arctan(-mu_xy / mu_yy) (y points down)."""
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]]
    mass = ink.sum()
    y, x = y - (ink * y).sum() / mass, x - (ink * x).sum() / mass
    return float(np.degrees(np.arctan2(-(ink * x * y).sum(), (ink * y * y).sum())))


def tercile(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """0, 1 or 2 for each of `values`: the third of `reference` it falls in."""
    return np.digitize(values, np.quantile(reference, (1 / 3, 2 / 3)))


def describe(name: str, weight: int, lean: int) -> str:
    """The caption of a digit, from its name and its two terciles; the middle ones go unsaid."""
    return f"a {('thin ', '', 'bold ')[weight]}handwritten {name}{(' leaning left', '', ' leaning right')[lean]}"


def caption_digits(scans: np.ndarray, targets: np.ndarray, train: np.ndarray) -> list[str]:
    """Captions for `scans (N, 8, 8)` of the digits `targets (N,)`.

    Weight and lean are judged among the training scans (indices `train`) of the SAME digit: the moments of a seven
    lean right and those of a six lean left however they are written, and a caption says how this one is written.
    """
    widths = np.array([stroke_width(scan) for scan in scans])
    slants = np.array([slant(scan) for scan in scans])
    captions = [""] * len(scans)
    for digit, name in enumerate(DIGIT_NAMES):
        members = np.flatnonzero(targets == digit)
        reference = np.intersect1d(members, train)
        weights = tercile(widths[members], widths[reference])
        leans = tercile(slants[members], slants[reference])
        for i, weight, lean in zip(members, weights, leans):
            captions[i] = describe(name, weight, lean)
    return captions


# --- sources --------------------------------------------------------------------------------------


def load_digits(seed: int) -> tuple[list[Example], list[Example]]:
    """scikit-learn's 1,797 scans (8x8, 17 grey levels) as white ink on black, enlarged; stratified train and test."""
    from sklearn.datasets import load_digits as load_scans
    from sklearn.model_selection import train_test_split

    scans: Any = load_scans()  # annotated as if it could only be the tuple that `return_X_y` gives
    ink, targets = scans.images / 16, scans.target
    halves = train_test_split(
        np.arange(len(ink)), test_size=DIGITS_HELD_OUT, random_state=seed, stratify=targets, shuffle=True
    )
    train, test = map(np.asarray, halves)
    captions = caption_digits(ink, targets, train)

    def example(i: int) -> Example:
        scan = Image.fromarray(np.round(ink[i] * 255).astype(np.uint8), "L")
        image = scan.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC).convert("RGB")
        return Example(image, captions[i], DIGIT_NAMES[targets[i]])

    return [example(i) for i in train], [example(i) for i in test]


def load_image_folder(
    train_data_dir: str | Path, seed: int, resolution: int = IMAGE_SIZE
) -> tuple[list[Example], list[Example]]:
    """Any folder that `datasets` reads as "imagefolder" with a `text` column.

    Images are resized to `resolution` pixels and centre-cropped. The label is the `label` column where there is one,
    otherwise the caption; other columns of strings are attributes. What lies in `test/` is held out; where there is no
    such folder, 20 % of all images.

    Raises:
        ValueError: no images, no or an empty `text`, an unreadable image, too few images or too many labels.
    """
    rows, held_out = _read_rows(train_data_dir)
    flag = f"--train_data_dir {train_data_dir}"
    if len(rows) < MIN_IMAGES:
        raise ValueError(f"{flag}: {len(rows)} images, but training needs at least {MIN_IMAGES}")
    if "text" not in rows.column_names:
        raise ValueError(
            f'{flag}: no column "text", only {rows.column_names}. Add a metadata.jsonl with one line '
            '{"file_name": "0001.png", "text": "its caption"} an image'
        )
    names = _attribute_names(rows)
    examples = [_read_example(cast(dict, row), rows.features, i, flag, resolution, names) for i, row in enumerate(rows)]
    labels = {example.label for example in examples}
    if "label" in rows.column_names and len(labels) > MAX_LABELS:
        raise ValueError(
            f"{flag}: {len(labels)} distinct labels, but the evaluator tells at most {MAX_LABELS} apart. "
            'Add a column "label" with fewer values to metadata.jsonl'
        )
    if held_out:
        return examples[:-held_out], examples[-held_out:]
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = round(FOLDER_HELD_OUT * len(examples))
    return [examples[i] for i in order[held_out:]], [examples[i] for i in order[:held_out]]


def _read_rows(train_data_dir: str | Path) -> "tuple[datasets.Dataset, int]":
    """All splits of an image folder as one `datasets.Dataset`, its images not decoded yet, and how many of the last
    ones are its test split (0: it has none, or nothing else)."""
    import datasets
    from datasets.exceptions import DatasetsError

    if not Path(train_data_dir).is_dir():
        raise ValueError(f"--train_data_dir {train_data_dir}: no such folder")
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as cache:
            loaded = datasets.load_dataset("imagefolder", data_dir=str(train_data_dir), cache_dir=cache)
            splits = cast("datasets.DatasetDict", loaded)  # as no split is named
            # The test split goes last.
            order = sorted(splits, key=lambda name: name == "test")
            held_out = len(splits["test"]) if "test" in splits and len(splits) > 1 else 0
            rows = datasets.concatenate_datasets([splits[name] for name in order])
            if "image" not in rows.column_names:
                raise ValueError(f"no images, only the columns {rows.column_names}")
            # Into memory: the cache goes away with this block.
            rows = datasets.Dataset.from_dict(
                cast(dict, rows.cast_column("image", datasets.Image(decode=False)).to_dict()),
                features=datasets.Features({**rows.features, "image": datasets.Image(decode=False)}),
            )
            return rows, held_out
    except (FileNotFoundError, ValueError, DatasetsError) as error:
        raise ValueError(f"--train_data_dir {train_data_dir}: not a readable image folder: {error}") from error
    finally:
        datasets.enable_progress_bars()


def _attribute_names(rows) -> list[str]:
    """The columns of short lists of strings beside image, caption and label."""
    names = [name for name in rows.column_names if name not in ("image", *COLUMNS)]
    columns = {name: set(rows[name]) for name in names}
    return [
        name
        for name, values in columns.items()
        if all(isinstance(value, str) for value in values) and 2 <= len(values) <= MAX_VALUES
    ]


def _read_example(row: dict, features: dict, index: int, flag: str, resolution: int, names: list[str]) -> Example:
    name = row["image"]["path"] or f"image {index}"
    text = row["text"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{flag}: {name} has the caption {text!r}; "text" must be a non-empty string')
    try:
        with Image.open(name) as image:
            image = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{flag}: cannot read {name}: {error}. Mend or remove it") from error
    label = row.get("label")
    if label is not None and hasattr(features["label"], "int2str"):
        label = features["label"].int2str(label)
    image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.BICUBIC)
    return Example(image, text, str(text if label is None else label), {name: row[name] for name in names})


def fingerprint_folder(folder: str | Path) -> str:
    """A hash of the names, sizes and times of all files in `folder`: changes whenever its content may have."""
    digest = hashlib.sha256(str(Path(folder).resolve()).encode())
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        stat = path.stat()
        digest.update(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


# --- the image folder -----------------------------------------------------------------------------


def write_split(folder: Path, examples: list[Example]) -> None:
    """Write `examples` as PNG files and a `metadata.jsonl` in `folder`."""
    folder.mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for i, example in enumerate(examples):
            name = f"{i:05d}.png"
            example.image.save(folder / name)
            row = {"file_name": name, "text": example.text, "label": example.label, **example.attributes}
            metadata.write(json.dumps(row) + "\n")

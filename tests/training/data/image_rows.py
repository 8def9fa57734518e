"""Small data sets of real image files, and batches of them, for the tests of training data."""

import io
import json
from itertools import islice

import datasets
from PIL import Image

from training.data.dataset import load_image_text_dataset, make_dataloader
from training.data.reader import SampleReader

datasets.disable_progress_bars()


def picture(number, kind="PNG", size=(12, 10)):
    """A plain image whose red value is `number`."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def folder(path, files, captions=None):
    """An image folder with metadata; `files` maps names to bytes, in the order of the rows."""
    path.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (name, data) in enumerate(files.items()):
        (path / name).write_bytes(data)
        caption = captions[number] if captions else f"caption {number}"
        lines.append(json.dumps({"file_name": name, "text": caption, "score": 0.5}))
    (path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return path


def load(path, tmp_path, **options):
    return load_image_text_dataset(train_data_dir=str(path), cache_dir=str(tmp_path / "cache"), **options)


def reader(**options):
    return SampleReader("image", "text", **({"resolution": 8, "seed": 5} | options))


def number_of(sample):
    """The red value of the picture: its row."""
    return round((float(sample["pixels"][0, 0, 0]) + 1) * 127.5)


def take(count, rows, ranks=1, workers=0, start=0, batch_size=2, **options):
    """`count` batches of every rank: lists of (position, sample id, caption)."""
    result = []
    for rank in range(ranks):
        loader = make_dataloader(
            rows, reader(**options), batch_size=batch_size, rank=rank, world_size=ranks, start_position=start,
            num_workers=workers,
        )  # fmt: skip
        batches = islice(loader, count)
        keys = ("positions", "sample_ids")
        result.append([list(zip(*(b[k].tolist() for k in keys), b["captions"])) for b in batches])
    return result

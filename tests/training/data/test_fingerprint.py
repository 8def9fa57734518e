"""The fingerprint of the data: equal for equal data wherever it is, another for other data."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from tests.training.data.image_rows import folder, load, picture
from training.data.fingerprint import dataset_fingerprint

ROOT = Path(__file__).parents[3]


def make(path, count=6):
    return folder(path, {f"{i}.png": picture(i, size=(12 + i, 10)) for i in range(count)})


@pytest.fixture
def fingerprint(tmp_path):
    return lambda path, **options: dataset_fingerprint(load(path, tmp_path, **options))


def test_equal_for_equal_data(tmp_path, fingerprint):
    """In another folder, with another cache, at other times of the files, and in another process."""
    path = make(tmp_path / "set")
    first = fingerprint(path)
    assert len(first) == 64
    moved = shutil.copytree(path, tmp_path / "elsewhere" / "deep", copy_function=shutil.copyfile)
    for file in moved.iterdir():
        os.utime(file, (1, 1))
    assert fingerprint(moved) == dataset_fingerprint(load(moved, tmp_path / "other")) == first
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from training.data.dataset import load_image_text_dataset
from training.data.fingerprint import dataset_fingerprint
print(dataset_fingerprint(load_image_text_dataset(train_data_dir={str(path)!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == first


def test_other_data_differs(tmp_path, fingerprint):
    """Half of the rows, another order, caption, name or size of an image; another selection or seed."""
    path = make(tmp_path / "set")
    lines = (path / "metadata.jsonl").read_text().splitlines()
    found = {fingerprint(path)}

    def with_lines(*lines):
        (path / "metadata.jsonl").write_text("\n".join(lines))
        return fingerprint(path)

    found |= {with_lines(*lines[:3]), with_lines(*lines[::-1]), with_lines(*lines[1:], lines[0].replace("cap", "map"))}
    found |= {fingerprint(path, max_train_samples=4, seed=seed) for seed in (0, 1)}
    (path / "0.png").write_bytes(picture(0, size=(90, 90)))
    found |= {with_lines(*lines)}
    (path / "0.png").rename(path / "00.png")
    found |= {with_lines(lines[0].replace("0.png", "00.png"), *lines[1:])}
    assert len(found) == 8


def test_chunks_and_embedded_images(tmp_path):
    """Images inside of the rows: their lengths count; how the table is divided does not."""
    columns = {"image": [{"bytes": bytes(i), "path": f"{i}.png"} for i in range(6)], "text": list("abcdef")}
    features = datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict(columns, features)
    parts = [{key: values[part] for key, values in columns.items()} for part in (slice(4), slice(4, 6))]
    halves = datasets.concatenate_datasets([datasets.Dataset.from_dict(part, features) for part in parts])
    assert dataset_fingerprint(rows) == dataset_fingerprint(halves)
    assert dataset_fingerprint(rows) != dataset_fingerprint(rows.select([1, 0, 2, 3, 4, 5]))
    columns["image"][3]["bytes"] = b"longer"
    assert dataset_fingerprint(rows) != dataset_fingerprint(datasets.Dataset.from_dict(columns, features))


def test_a_stream_has_none(tmp_path):
    assert dataset_fingerprint(load(make(tmp_path / "set"), tmp_path, streaming=True)) is None

"""Folders of images: metadata with damaged lines, text files beside the images, and what is said of mistakes."""

import json
import os
from itertools import islice

import datasets
import pytest

from tests.training.data.image_rows import folder, load, number_of, picture, reader
from training.data.dataset import ImageTextDataset, make_dataloader
from training.data.errors import DataError
from training.data.order import SampleKey


def images(path, count=6):
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (path / f"{number}.png").write_bytes(picture(number))
    return path


def metadata(path, *lines):
    lines = [line if isinstance(line, bytes) else line.encode() for line in lines]
    (path / "metadata.jsonl").write_bytes(b"\n".join(lines))
    return path


def line(number, text="x", **fields):
    return json.dumps({"file_name": f"{number}.png", "text": text} | fields)


def read_all(rows):
    data = ImageTextDataset(rows, reader())
    return [data[SampleKey(0, i, i)] for i in range(len(rows))]


BAD_LINES = {
    "numeric caption": line(1, 7),
    "lone surrogate": line(1, "half \ud83d"),
    "surrogate in the name": line("\ud83d"),
    "cut": line(1)[:-4],
    "not UTF-8": b'{"file_name": "1.png", "text": "caf\xe9"}',
    "not an object": "[1, 2]",
    "deep": "[" * 100_000,
    "no name": json.dumps({"text": "x"}),
    "numeric name": json.dumps({"file_name": 1, "text": "x"}),
    "absolute": json.dumps({"file_name": "/etc/passwd", "text": "x"}),
    "parent": json.dumps({"file_name": "a/../../secret.png", "text": "x"}),
    "url": json.dumps({"file_name": "github://org:repo@main/1.png", "text": "x"}),
    "pipe": line("pipe"),
    "device": line("device"),
    "null": line(1, None),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_damaged_line_is_replaced_and_counted(tmp_path, kind, last):
    """The row keeps its number and is replaced by the next; all others are read."""
    path = images(tmp_path / "set", 4)
    (tmp_path / "secret.png").write_bytes(picture(99))
    os.mkfifo(path / "pipe.png")
    (path / "device.png").symlink_to("/dev/zero")
    lines = [line(0), line(2), line(3)]
    lines.insert(3 if last else 1, BAD_LINES[kind])
    rows = load(metadata(path, *lines), tmp_path)
    samples = read_all(rows)
    assert [number_of(s) for s in samples] == ([0, 2, 3, 0] if last else [0, 2, 2, 3])
    assert [s["replaced"] for s in samples] == ([0, 0, 0, 1] if last else [0, 1, 0, 0])


def test_damaged_lines_are_reported_once(tmp_path, caplog):
    """How many, and where the first one is."""
    path = metadata(images(tmp_path / "set"), line(0), "", line(1, 7), line(2)[:-9], line(3))
    assert len(load(path, tmp_path)) == 4
    assert "2 of 4 rows cannot be used" in caplog.text
    assert "metadata.jsonl line 3: the caption in `text` is 7, not text" in caplog.text


def test_damaged_lines_in_a_stream(tmp_path):
    """The same rows, shuffled."""
    path = metadata(images(tmp_path / "set"), line(0), line(1, 7), line(2)[:-9], *(line(i) for i in (3, 4, 5)))
    rows = load(path, tmp_path, streaming=True)
    batches = islice(make_dataloader(rows, reader(), batch_size=3), 2)  # one epoch
    batches = list(batches)
    assert sum(b["replaced"] for b in batches) >= 1
    numbers = {round(float(p[0, 0, 0] + 1) * 127.5) for b in batches for p in b["pixels"]}
    assert numbers <= {0, 3, 4, 5}


def test_csv_and_parquet_metadata(tmp_path):
    """With a byte that is not UTF-8, an image in a subfolder, a number of many digits and cells too many or too few."""
    path = images(tmp_path / "set" / "sub").parent
    (path / "metadata.csv").write_bytes(
        b"file_name,text\nsub/0.png,one\nsub/1.png,caf\xe9\nsub/2.png,007\nsub/3.png,a,b\nsub/4.png\nsub/5.png,six\n"
    )
    samples = read_all(load(path, tmp_path))
    assert [number_of(s) for s in samples] == [0, 2, 2, 3, 5, 5]
    assert [s["caption"] for s in samples] == ["one", "007", "007", "a", "six", "six"]
    (path / "metadata.csv").unlink()
    datasets.Dataset.from_dict({"file_name": ["sub/0.png", "sub/1.png"], "text": [["a", "b"], ["c"]]}).to_parquet(
        path / "metadata.parquet"
    )
    rows = load(path, tmp_path)
    assert rows["text"][:] == [["a", "b"], ["c"]]
    assert [number_of(s) for s in read_all(rows)] == [0, 1]


def test_captions_may_be_lists(tmp_path):
    """Beside strings, and with entries that cannot be used."""
    path = metadata(images(tmp_path / "set"), line(0, ["a", "b", 3, ""]), line(1, "c"), line(2, [""]), line(3, ["d"]))
    assert load(path, tmp_path)["text"][:] == [["a", "b"], ["c"], None, ["d"]]


def test_other_image_and_caption_columns(tmp_path):
    """`photo_file_name` is the column `photo`, as datasets has it."""
    path = metadata(images(tmp_path / "set"), json.dumps({"photo_file_name": "3.png", "caption": "three"}))
    rows = load(path, tmp_path, image_column="photo", caption_column="caption")
    assert rows.column_names == ["photo", "caption"]
    assert rows[0]["photo"]["path"].endswith("3.png")
    with pytest.raises(DataError, match=r"^--image_column image: .*only: photo, caption; pass --image_column photo$"):
        load(path, tmp_path)


def test_text_files_beside_the_images(tmp_path, caplog):
    """kohya's layout: a line is a caption; an image without a text, or with an unreadable one, is replaced."""
    path = images(tmp_path / "set" / "sub", 7).parent
    texts = {0: b"zero\n", 1: b"\xef\xbb\xbfone\r\n\n uno \n", 3: b"", 4: b"caf\xe9", 6: b"six"}
    for number, text in texts.items():
        (path / "sub" / f"{number}.txt").write_bytes(text)
    os.mkfifo(path / "sub" / "5.txt")
    rows = load(path, tmp_path)
    assert rows["text"][:] == [["zero"], ["one", "uno"], None, None, None, None, ["six"]]
    assert "4 of 7 rows cannot be used" in caplog.text
    assert [number_of(s) for s in read_all(rows)] == [0, 1, 6, 6, 6, 6, 6]
    stream = load(path, tmp_path, streaming=True, max_train_samples=1)
    assert [row["text"] for row in stream] == [["zero"]]


def test_text_files_of_splits(tmp_path):
    """Each split its own."""
    for name, text in (("train", "t"), ("test", "held out")):
        (images(tmp_path / "set" / name, 1) / "0.txt").write_text(text)
    assert load(tmp_path / "set", tmp_path)["text"][:] == ["t"]
    assert load(tmp_path / "set", tmp_path, split="test")["text"][:] == ["held out"]


def test_metadata_comes_before_text_files(tmp_path):
    """Where there are both."""
    path = folder(tmp_path / "set", {"0.png": picture(0)}, ["of the metadata"])
    (path / "0.txt").write_text("of the text file")
    assert load(path, tmp_path)["text"][:] == ["of the metadata"]


def no_captions(path):
    images(path)


def other_table(path):
    (images(path) / "captions.csv").write_text("file_name,text\n0.png,x\n")


def only_junk(path):
    metadata(images(path), "{", "{")


def numbers(path):
    metadata(images(path), line(0, 1), line(1, 2))


def empty_metadata(path):
    metadata(images(path), "")


def caption_column(path):
    (images(path) / "metadata.csv").write_text("file_name,caption\n0.png,x\n")


def bad_parquet(path):
    (images(path) / "metadata.parquet").write_bytes(b"PAR1 junk")


def no_images(path):
    path.mkdir()
    (path / "notes.md").write_text("x")


MISTAKES = {
    "empty folder": (lambda path: path.mkdir(), "there are no files in the folder"),
    "no images": (no_images, "there are no images in the folder; add images with a metadata.jsonl"),
    "no captions": (no_captions, "the 6 images have no captions: there is neither a metadata.jsonl .* add one"),
    "another table": (other_table, r"have no captions: .*rename \S+captions.csv to metadata.csv"),
    "only junk": (
        only_junk,
        r"no line of the metadata can be read; .*metadata.jsonl line 1: not a line of JSON \(JSONDecodeError",
    ),
    "only numbers": (
        numbers,
        "2 of 2 rows cannot be used; .*line 1: the caption in `text` is 1, not text.*--caption_co",
    ),
    "empty metadata": (empty_metadata, "metadata.jsonl is empty"),
    "caption column": (
        caption_column,
        r"^--caption_column text: .*only: image, caption; pass --caption_column caption$",
    ),
    "damaged parquet": (bad_parquet, r"metadata.parquet cannot be read after line 0: ArrowInvalid"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_one_line(tmp_path, kind):
    """With the flag, its value and the fix."""
    make, expected = MISTAKES[kind]
    make(tmp_path / "set")
    with pytest.raises(DataError, match=expected) as error:
        load(tmp_path / "set", tmp_path)
    assert "\n" not in str(error.value)
    assert f"--train_data_dir {tmp_path}/set" in str(error.value)

"""Data sets of real files, damaged ones among them: what is read, in which order, and what is refused."""

import io
import json
import logging
import traceback
from itertools import islice

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from tests.training.data.image_rows import folder, load, number_of, picture, reader, take
from training.data.dataset import ImageTextDataset, collate, load_image_text_dataset, make_dataloader
from training.data.errors import DataError
from training.data.order import GlobalBatchSampler, SampleKey
from training.data.reader import MAX_REPLACED, SampleReader, UnusableSample, choose_caption


@pytest.fixture
def ten(tmp_path):
    return load(folder(tmp_path / "ten", {f"{i}.png": picture(i) for i in range(10)}), tmp_path)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_image_folder(ten):
    """Rows of the folder, undecoded, with the two columns only."""
    assert len(ten) == 10
    assert ten.column_names == ["image", "text"]
    assert ten[3]["text"] == "caption 3"
    assert ten[3]["image"]["path"].endswith("3.png")


def test_held_out_split_is_not_trained_on(tmp_path, caplog):
    """A folder with train/ and test/: only train/ is read, and the log says so; `split` chooses the other."""
    folder(tmp_path / "set" / "train", {f"{i}.png": picture(i) for i in range(4)})
    folder(tmp_path / "set" / "test", {"9.png": picture(9)}, ["held out"])
    with caplog.at_level(logging.INFO, logger="training.data.sources"):
        assert len(load(tmp_path / "set", tmp_path)) == 4
    assert "split 'train' of train, test" in caplog.text
    assert load(tmp_path / "set", tmp_path, split="test")["text"][:] == ["held out"]
    with pytest.raises(DataError, match=r"--dataset_split validation: --train_data_dir .* only: train, test; pass"):
        load(tmp_path / "set", tmp_path, split="validation")


@pytest.mark.parametrize("streaming", [False, True])
def test_wrong_column_names_flag_value_and_columns(tmp_path, streaming):
    """The message can be acted on without opening the data."""
    path = folder(tmp_path / "set", {"0.png": picture(0)})
    with pytest.raises(DataError, match=r"--caption_column prompt: .*only: image, text, score; pass .*column text$"):
        load(path, tmp_path, caption_column="prompt", streaming=streaming)
    with pytest.raises(DataError, match=r"--image_column photo: .*only: image, text, score; pass .*column image$"):
        load(path, tmp_path, image_column="photo", streaming=streaming)


def test_nothing_to_load(tmp_path):
    """Neither flag, no such folder, an impossible number."""
    with pytest.raises(DataError, match="--dataset_name or --train_data_dir"):
        load_image_text_dataset()
    with pytest.raises(DataError, match=r"--train_data_dir .*nowhere: there is no such folder"):
        load(tmp_path / "nowhere", tmp_path)
    with pytest.raises(DataError, match="--max_train_samples is 0"):
        load(tmp_path, tmp_path, max_train_samples=0)


def test_max_train_samples(ten, tmp_path):
    """That many rows, drawn by the seed, the same again; more than there are gives all."""
    chosen = [load(tmp_path / "ten", tmp_path, max_train_samples=4, seed=s)["text"][:] for s in (0, 0, 1)]
    assert len(set(chosen[0])) == 4
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] != [f"caption {i}" for i in range(4)]
    assert len(load(tmp_path / "ten", tmp_path, max_train_samples=99)) == 10
    assert len(list(load(tmp_path / "ten", tmp_path, max_train_samples=3, streaming=True))) == 3


def test_dataset_by_name_and_stream_without_known_columns(tmp_path):
    """--dataset_name takes any loader of datasets; a stream of JSON lines knows its columns only from its rows."""
    (tmp_path / "set").mkdir()
    (tmp_path / "0.png").write_bytes(picture(77))
    (tmp_path / "set" / "train.jsonl").write_text(
        json.dumps({"photo": str(tmp_path / "0.png"), "prompt": "red"}) + "\n"
    )
    for streaming in (False, True):
        rows = load_image_text_dataset(
            dataset_name=str(tmp_path / "set"), image_column="photo", caption_column="prompt", streaming=streaming,
            cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        sample = SampleReader("photo", "prompt", 8)(next(iter(rows)), SampleKey(0, 0, 0), 0)
        assert (number_of(sample), sample["caption"]) == (77, "red")


# --- samples ---------------------------------------------------------------------------------------------------------


def test_sample(tmp_path):
    """Fields of one sample, by hand: 12 x 10 pixels at resolution 8 become 9 x 8, cut at the centre: x = round(.5)."""
    rows = load(folder(tmp_path / "set", {"0.png": picture(51, size=(12, 10))}), tmp_path)
    sample = ImageTextDataset(rows, reader(center_crop=True))[SampleKey(0, 0, 31)]
    assert sample["pixels"].shape == (3, 8, 8)
    assert sample["pixels"].dtype == torch.float32
    assert sample["pixels"][0].eq(-0.6).all()
    assert sample["pixels"][1:].eq(-1).all()
    expected = {"caption": "caption 0", "sample_id": 0, "position": 31, "replaced": 0, "original_size": (10, 12),
                "crop_top_left": (0, 0), "target_size": (8, 8), "enlarged": False}  # fmt: skip
    assert {k: v for k, v in sample.items() if k != "pixels"} == expected


def test_randomness_is_a_function_of_seed_epoch_and_index(tmp_path):
    """The same key gives the same bits whatever was read before; another epoch, index or seed another crop or flip."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    rows = load(folder(tmp_path / "set", {"0.png": buffer.getvalue(), "1.png": buffer.getvalue()}), tmp_path)
    long = rows.cast_column("image", datasets.Image(decode=False))
    data = ImageTextDataset(long, reader(random_flip=True))
    first = data[SampleKey(0, 0, 0)]["pixels"]
    torch.manual_seed(99)
    flips = [data[SampleKey(epoch, 0, 2 * epoch)]["pixels"] for epoch in range(8)]
    assert torch.equal(flips[0], first)
    assert {torch.equal(pixels, first) or torch.equal(pixels, first.flip(-1)) for pixels in flips} == {True}
    for others in (
        [data[SampleKey(e, 1, 1)]["pixels"] for e in range(8)],
        [ImageTextDataset(long, reader(random_flip=True, seed=6))[SampleKey(e, 0, 0)]["pixels"] for e in range(8)],
    ):
        same = [torch.equal(a, b) for a, b in zip(flips, others)]
        assert True in same
        assert False in same


@pytest.mark.parametrize("cell", [None, "", " \n", 7, [], ["", None], {"en": "a cat"}, b"bytes", "half \ud83d"])
def test_missing_captions(cell):
    """Nothing that could be trained on: the message shows the cell."""
    with pytest.raises(UnusableSample, match="no caption"):
        choose_caption(cell, torch.Generator())


def test_captions():
    """A string is kept as it is, however long; of a list each usable string is drawn about equally often."""
    long = "very " * 5000 + "long"
    assert choose_caption(long, torch.Generator()) == long
    assert choose_caption(" a cat ", torch.Generator()) == " a cat "
    generator = torch.Generator().manual_seed(0)
    drawn = [choose_caption(["a", "", "b", None, "c"], generator) for _ in range(300)]
    assert {c: drawn.count(c) > 70 for c in "abc"} == {"a": True, "b": True, "c": True}
    assert set(drawn) == set("abc")


def test_unusable_rows_are_replaced_by_the_next(tmp_path):
    """Damaged files and missing captions: the next usable row, wrapping round, with the number passed over."""
    files = {f"{i}.png": picture(i) for i in range(8)}
    files |= {"1.png": b"", "2.png": picture(2)[:40], "5.png": b"not an image", "7.png": picture(7, "JPEG")[:300]}
    rows = load(folder(tmp_path / "set", files, ["a", "b", "c", "d", None, "f", "g", "h"]), tmp_path)
    (tmp_path / "set" / "6.png").unlink()
    data = ImageTextDataset(rows, reader())
    samples = [data[SampleKey(0, i, i)] for i in range(8)]
    assert [number_of(s) for s in samples] == [0, 3, 3, 3, 0, 0, 0, 0]
    assert [s["sample_id"] for s in samples] == [0, 3, 3, 3, 0, 0, 0, 0]
    assert [s["replaced"] for s in samples] == [0, 2, 1, 0, 4, 3, 2, 1]
    assert [s["position"] for s in samples] == list(range(8))
    assert collate(samples)["replaced"] == 13


@pytest.mark.parametrize("workers", [0, 2])
def test_all_rows_unusable(tmp_path, workers):
    """An error that names rows, files, reasons and flags; no endless search, in worker processes either."""
    rows = load(folder(tmp_path / "set", {f"{i}.png": b"junk" for i in range(6)}), tmp_path)
    with pytest.raises(
        DataError, match=r"^--image_column image .*6 samples in a row.*[0-5] \(\S+[0-5]\.png: Unidentified"
    ) as error:
        take(1, rows, workers=workers)
    assert "\n" not in str(error.value)  # torch puts a worker's traceback before the message
    traceback.clear_frames(error.tb)  # else the workers live until some later garbage collection


def test_replacement_is_capped():
    """100 unusable rows in a row end the run; 99 don't."""
    for bad in (MAX_REPLACED - 1, MAX_REPLACED):
        images = [{"bytes": b"junk", "path": None}] * bad + [{"bytes": picture(9), "path": None}] * 50
        rows = datasets.Dataset.from_dict({"image": images, "text": ["x"] * len(images)})
        data = ImageTextDataset(rows, reader())
        if bad < MAX_REPLACED:
            assert data[SampleKey(0, 0, 0)]["replaced"] == bad
        else:
            with pytest.raises(DataError, match="100 samples in a row"):
                data[SampleKey(0, 0, 0)]


def test_collate(ten):
    """Shapes and types of a batch."""
    data = ImageTextDataset(ten, reader(center_crop=True))
    batch = collate([data[SampleKey(1, i, 10 + i)] for i in (4, 2, 7)])
    assert batch["pixels"].shape == (3, 3, 8, 8)
    assert batch["captions"] == ["caption 4", "caption 2", "caption 7"]
    assert batch["sample_ids"].tolist() == [4, 2, 7]
    assert batch["positions"].tolist() == [14, 12, 17]
    assert batch["original_size"].tolist() == [[10, 12]] * 3
    assert batch["crop_top_left"].tolist() == [[0, 0]] * 3
    assert batch["target_size"].tolist() == [[8, 8]] * 3
    assert batch["replaced"] == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_enlarged_images_are_counted_and_warned_of_once(tmp_path, caplog, workers):
    """Two of five have a short side below 8 pixels; the batch counts them, and the first epoch ends in one warning."""
    sizes = [(8, 8), (90, 7), (9, 8), (7, 90), (8, 30)]
    rows = load(folder(tmp_path / "set", {f"{i}.png": picture(i, size=s) for i, s in enumerate(sizes)}), tmp_path)
    for rank, warnings in ((1, 0), (0, 1)):
        loader = make_dataloader(rows, reader(), batch_size=1, rank=rank, world_size=1 + rank, num_workers=workers)
        batches = list(islice(loader, 15))
        assert {(int(b["sample_ids"]), b["enlarged"]) for b in batches} == {(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)}
        assert caplog.text.count("2 of the first 5 images (40 %) are smaller than --resolution 8") == warnings


def test_no_warning_where_nothing_is_enlarged(ten, caplog):
    take(12, ten)
    assert "smaller" not in caplog.text


def test_a_row_that_cannot_be_read(ten):
    """Text in a parquet file that is not UTF-8 is an error of reading the row: replaced, not the end of the run."""
    data = ImageTextDataset(ten, reader())
    bad = pa.StringArray.from_buffers(1, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff"))
    table = ten.data.table.slice(0, 1).set_column(1, "text", bad)
    data.rows = datasets.concatenate_datasets([datasets.Dataset(table, ten.info), ten.select(range(1, 10))])
    with pytest.raises(UnicodeDecodeError):
        data.rows[0]
    assert (number_of(data[SampleKey(0, 0, 0)]), data[SampleKey(0, 0, 0)]["replaced"]) == (1, 1)


# --- batches of a data set -------------------------------------------------------------------------------------------


def expected(rows, count, ranks, start=0):
    """What the sampler alone says."""
    samplers = [GlobalBatchSampler(len(rows), 2, r, ranks, seed=5, start_position=start) for r in range(ranks)]
    return [[[(k.position, k.index, f"caption {k.index}") for k in b] for b in islice(s, count)] for s in samplers]


def test_two_ranks_two_workers(ten):
    """The exact sequence of sample ids, across epochs, is the sampler's."""
    assert take(7, ten, ranks=2, workers=2) == expected(ten, 7, 2)


def test_resume_in_mid_epoch(ten):
    """Stopped after 3 of 7 batches and resumed: ids and captions of the uninterrupted run, for every rank."""
    whole = take(7, ten, ranks=2, workers=2)
    assert [r[3:] for r in whole] == take(4, ten, ranks=2, workers=2, start=3 * 4)


def test_two_ranks_resumed_as_one(ten):
    """2 -> 1 ranks in mid-epoch: together every row exactly once an epoch."""
    before = [s for rank in take(3, ten, ranks=2) for batch in rank for s in batch]
    after = [s for batch in take(14, ten, ranks=1, start=12, workers=2)[0] for s in batch]
    seen = sorted(before + after)
    assert [p for p, _, _ in seen] == list(range(40))
    for epoch in range(4):
        assert sorted(i for _, i, _ in seen[10 * epoch : 10 * epoch + 10]) == list(range(10))


def test_pixels_do_not_depend_on_workers(ten):
    """Bit-equal batches with 0 and 2 workers, with random crops and flips."""
    loaders = [make_dataloader(ten, reader(random_flip=True), batch_size=4, num_workers=w) for w in (0, 2)]
    for one, other in islice(zip(*loaders), 4):
        assert torch.equal(one["pixels"], other["pixels"])
        assert torch.equal(one["crop_top_left"], other["crop_top_left"])


def test_loader_leaves_the_random_state_alone(ten):
    """Making and reading a loader draws nothing from torch's own generator: a resumed run makes one more of them."""
    state = torch.random.get_rng_state()
    take(3, ten, workers=1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_set_smaller_than_the_global_batch(ten):
    """Refused when the loader is made, before any process waits for another."""
    with pytest.raises(DataError, match="10 samples, fewer than one batch of all processes"):
        make_dataloader(ten, reader(), batch_size=6, rank=1, world_size=2)

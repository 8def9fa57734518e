"""Streams: disjoint ranks and workers, exact resume, replaced rows."""

import traceback

import datasets
import pytest
import torch

from tests.training.data.image_rows import folder, load, number_of, picture, reader, take
from training.data.dataset import make_dataloader
from training.data.errors import DataError
from training.data.reader import MAX_REPLACED
from training.data.streams import StreamingImageTextDataset

N = 24


def stream(shards, bad=(), count=N):
    """A stream of `count` rows; a row's number is its red value and its caption."""
    images = [{"bytes": b"junk" if i in bad else picture(i), "path": None} for i in range(count)]
    rows = datasets.Dataset.from_dict({"image": images, "text": [str(i) for i in range(count)]})
    return rows.to_iterable_dataset(num_shards=shards).cast_column("image", datasets.Image(decode=False))


def captions(ranks):
    return [int(caption) for rank in ranks for batch in rank for _, _, caption in batch]


@pytest.mark.parametrize(("shards", "ranks", "workers"), [(1, 1, 0), (4, 2, 2), (3, 2, 1), (2, 2, 1), (6, 1, 2)])
def test_ranks_and_workers_share_the_epoch(shards, ranks, workers):
    """All ranks and workers together read every row exactly once an epoch, shuffled, however shards divide."""
    per_rank = N // 2 // ranks  # batches of 2
    first = captions(take(per_rank, stream(shards), ranks, workers))
    assert sorted(first) == list(range(N))
    assert first != sorted(first)


def test_positions_number_the_samples():
    """Positions are those of the global batches, as for an indexed data set: rank r, slot j of batch g."""
    ranks = take(3, stream(4), ranks=2, workers=2)
    positions = [[[p for p, _, _ in batch] for batch in rank] for rank in ranks]
    assert positions == [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [10, 11]]]


def test_epochs_differ():
    """A new epoch is shuffled anew, and a seed repeats."""
    both = captions(take(N, stream(4)))
    assert sorted(both[:N]) == sorted(both[N:]) == list(range(N))
    assert both[:N] != both[N:]
    assert captions(take(N, stream(4))) == both
    assert captions(take(N, stream(4), seed=6)) != both


@pytest.mark.parametrize("consumed", [1, 3, 7])
@pytest.mark.parametrize(("shards", "ranks", "workers"), [(4, 2, 2), (1, 1, 0), (3, 1, 2)])
def test_resume_is_exact(shards, ranks, workers, consumed):
    """In mid-epoch, in mid-round of the workers and in the second epoch: the uninterrupted run's samples."""
    rows = stream(shards, bad=(3, 4, 9), count=12)
    whole = take(consumed + 3, rows, ranks, workers)
    resumed = take(3, rows, ranks, workers, start=consumed * 2 * ranks)
    assert resumed == [rank[consumed:] for rank in whole]


def test_resume_pixels_are_equal():
    """Crops and flips too."""
    options = {"batch_size": 2, "num_workers": 2}
    whole = make_dataloader(stream(4, bad=(0, 9)), reader(random_flip=True), **options)
    for _ in range(5):
        next(whole)
    resumed = make_dataloader(stream(4, bad=(0, 9)), reader(random_flip=True), start_position=10, **options)
    for _ in range(4):
        one, other = next(whole), next(resumed)
        assert torch.equal(one["pixels"], other["pixels"])
        assert torch.equal(one["crop_top_left"], other["crop_top_left"])
        assert one["replaced"] == other["replaced"]


def test_unusable_rows_are_replaced_by_the_next():
    """A bad row's place is filled by the next usable one, which keeps its own place as well."""
    data = StreamingImageTextDataset(stream(1, bad=(2, 3, 10)), reader(), batch_size=4)
    data.epoch_rows = lambda epoch: data.rows  # in order, so that "next" is plain
    iterator = iter(data)
    samples = [next(iterator) for _ in range(12)]
    assert [number_of(s) for s in samples] == [0, 1, 4, 4, 4, 5, 6, 7, 8, 9, 11, 11]
    assert [s["replaced"] for s in samples] == [0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    assert [s["position"] for s in samples] == list(range(12))


@pytest.mark.parametrize("workers", [0, 2])
def test_all_rows_unusable(workers):
    """An error after the cap, across epochs, and no hang."""
    with pytest.raises(DataError, match=f"--caption_column text: {MAX_REPLACED} samples in a row") as error:
        take(1, stream(2, bad=range(5), count=5), workers=workers)
    traceback.clear_frames(error.tb)  # else the workers live until some later garbage collection


def test_rank_without_rows():
    """Two rows cannot feed three ranks: an error where the third would wait for ever."""
    with pytest.raises(DataError, match=r"process 2 of 3 gets no rows: use fewer processes"):
        take(1, stream(1, count=2), ranks=3)


def test_rank_with_fewer_rows():
    """Shards of 3 and 2 rows: a rank goes on into its next epoch when its shard ends, whatever the others do."""
    ranks = take(8, stream(2, count=5), ranks=2, batch_size=1)
    rows = [[int(caption) for batch in rank for _, _, caption in batch] for rank in ranks]
    data = [StreamingImageTextDataset(stream(2, count=5), reader(), 1, rank, 2) for rank in range(2)]
    epochs = [[[int(row["text"]) for row in d.epoch_rows(epoch)] for d in data] for epoch in range(4)]
    assert all(sorted(one + other) == list(range(5)) for one, other in epochs)
    assert {len(one) for one, _ in epochs} == {2, 3}
    assert rows == [[row for epoch in epochs for row in epoch[rank]][:8] for rank in range(2)]


def test_more_workers_than_shards(caplog):
    """Lowered with a warning: a worker without a shard would end, and the order would depend on when."""
    assert sorted(captions(take(N // 2, stream(2), workers=4))) == list(range(N))
    assert "--dataloader_num_workers 4: lowered to the 2 shards" in caplog.text


def test_resume_needs_whole_batches():
    """A position that this batch size and number of ranks cannot have reached."""
    with pytest.raises(DataError, match=r"cannot resume at sample 6 with batches of 4 \(--train_batch_size 2 x 2"):
        make_dataloader(stream(2), reader(), batch_size=2, world_size=2, start_position=6)


def test_image_folder_as_a_stream(tmp_path):
    """The loader's own stream: a damaged file is read as bytes and replaced."""
    files = {f"{i}.png": picture(i) for i in range(6)} | {"2.png": b"junk"}
    rows = load(folder(tmp_path / "set", files), tmp_path, streaming=True)
    batch = next(make_dataloader(rows, reader(), batch_size=6, num_workers=1))
    numbers = [round(float(p[0, 0, 0] + 1) * 127.5) for p in batch["pixels"]]
    assert set(numbers) <= {0, 1, 3, 4, 5}
    assert len(set(numbers)) == 5
    assert batch["replaced"] == 1
    assert [f"caption {n}" for n in numbers] == batch["captions"]

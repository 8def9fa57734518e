"""The order of samples: a function of seed and position, whatever the processes."""

from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from distillation.noise import derive_seed
from training.data.errors import DataError
from training.data.order import GlobalBatchSampler, SampleKey, epoch_order


def stream(count, world_size, batch_size, num_samples, start=0, seed=7):
    """The first `count` keys of all ranks together, put back into the order of positions."""
    assert count % (batch_size * world_size) == 0
    ranks = [GlobalBatchSampler(num_samples, batch_size, r, world_size, seed, start) for r in range(world_size)]
    batches = [list(islice(rank, count // (batch_size * world_size))) for rank in ranks]
    return [key for global_batch in zip(*batches) for batch in global_batch for key in batch]


def test_stream_is_epochs_of_permutations():
    """Position p is epoch p // n, place p % n; each epoch is another permutation of all rows."""
    keys = stream(3 * 10, world_size=1, batch_size=3, num_samples=10)
    assert [k.position for k in keys] == list(range(30))
    assert [k.epoch for k in keys] == [0] * 10 + [1] * 10 + [2] * 10
    epochs = [[k.index for k in keys[i : i + 10]] for i in (0, 10, 20)]
    assert [sorted(e) for e in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[1] == epoch_order(10, 7, 1).tolist()


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_order_does_not_depend_on_ranks(world_size, batch_size):
    """Any split of a global batch of 6 reads the stream of one process; rank r has the r-th contiguous slice."""
    assert stream(60, world_size, batch_size, 13) == stream(60, 1, 6, 13)
    first = next(iter(GlobalBatchSampler(13, batch_size, world_size - 1, world_size, 7)))
    assert [key.position for key in first] == list(range(6 - batch_size, 6))


@pytest.mark.parametrize("start", [4, 8, 12, 28])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_resume_with_other_ranks_loses_and_repeats_nothing(start, before, after):
    """Stopped anywhere, in mid-epoch too, and resumed with 2 -> 1 or 1 -> 2 ranks: the uninterrupted sequence."""
    n, whole = 11, stream(44, 1, 1, 11)
    resumed = stream(start, before, 2, n) + stream(44 - start, after, 2, n, start=start)
    assert [k for k in resumed if k.epoch < 3] == [k for k in whole if k.epoch < 3]
    assert sorted(k.index for k in resumed if k.epoch == 1) == list(range(n))


class Keys(Dataset):
    def __getitem__(self, key):
        return tuple(key)


def test_workers_keep_the_order():
    """A DataLoader with persistent workers gives the sampler's own sequence, and starts again on the next iter."""
    sampler = GlobalBatchSampler(9, 2, 1, 2, seed=3, start_position=5)
    loader = DataLoader(Keys(), batch_sampler=sampler, num_workers=2, persistent_workers=True, collate_fn=list)
    expected = [[tuple(k) for k in batch] for batch in islice(sampler, 8)]
    assert list(islice(loader, 8)) == expected
    assert list(islice(loader, 3)) == expected[:3]


def test_unshuffled_reads_rows_in_order():
    """shuffle=False: index = position mod n."""
    keys = next(iter(GlobalBatchSampler(4, 4, 0, 1, seed=0, start_position=6, shuffle=False)))
    assert keys == [SampleKey(1, 2, 6), SampleKey(1, 3, 7), SampleKey(2, 0, 8), SampleKey(2, 1, 9)]


def test_seeds_are_unrelated():
    """Neighbouring seeds and epochs don't share permutations, as seed + epoch would."""
    assert derive_seed(1, 0) != derive_seed(0, 1)
    assert derive_seed(1, 23) != derive_seed(12, 3)
    orders = [tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16
    assert torch.equal(epoch_order(50, 1, 2), epoch_order(50, 1, 2))


def test_set_smaller_than_the_global_batch():
    """Refused with the numbers and the fix: some sample would be twice in one batch of one epoch."""
    with pytest.raises(DataError, match=r"7 samples.*--train_batch_size 4 x 2 processes = 8.*lower --train_batch_size"):
        GlobalBatchSampler(7, 4, 0, 2, seed=0)
    assert len(next(iter(GlobalBatchSampler(8, 4, 1, 2, seed=0)))) == 4


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((9, 0, 0, 1, 0), "batch_size is 0"), ((9, 1, 2, 2, 0), "rank 2"), ((9, 1, 0, 1, 0, -1), "-1")],
)
def test_arguments_out_of_range(arguments, named):
    """Named with their values."""
    with pytest.raises(ValueError, match=named):
        GlobalBatchSampler(*arguments)

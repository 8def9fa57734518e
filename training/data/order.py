"""The order of the training data, as a pure function of (seed, epoch, global sample index).

Training reads one infinite stream of positions p = 0, 1, 2, ... Position p is sample
`epoch_order(seed, p // n)[p % n]`, independently of the number of processes or workers. A checkpoint therefore only
needs the number of consumed positions to resume exactly, also in mid-epoch and with another number of processes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from distillation.noise import derive_seed
from training.data.errors import DataError


class SampleKey(NamedTuple):
    """Identifies one sample: `epoch`, `index` of the row in the data set, and `position` in the stream."""

    epoch: int
    index: int
    position: int


def epoch_order(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """The shuffled row indices of one epoch, int64 `(num_samples,)`."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return torch.randperm(num_samples, generator=generator)


class GlobalBatchSampler(Sampler[list[SampleKey]]):
    """Endless batches of one process, for the `batch_sampler` of a `torch.utils.data.DataLoader`.

    Global batch g covers the `batch_size * world_size` positions from `start_position + g * batch_size *
    world_size`; process `rank` gets a contiguous slice of `batch_size` of them. Batches may cross the end of an
    epoch, so that no sample is dropped. Each `iter()` starts again at `start_position`.

    Args:
        num_samples: number of rows of the data set.
        batch_size: number of samples per process and batch.
        rank: index of this process, 0 <= rank < `world_size`.
        world_size: number of processes.
        seed: seed of the permutations.
        start_position: number of samples that all processes together have consumed before.
        shuffle: whether to shuffle; False reads the rows in order.

    Raises:
        DataError: the data set is smaller than one global batch.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        start_position: int = 0,
        shuffle: bool = True,
    ):
        check_slice(batch_size, rank, world_size, start_position)
        if num_samples < batch_size * world_size:
            raise DataError(
                f"the data set has {num_samples} samples, fewer than one batch of all processes "
                f"(--train_batch_size {batch_size} x {world_size} processes = {batch_size * world_size}): "
                "lower --train_batch_size, use fewer processes, raise --max_train_samples or add images"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.start_position = start_position
        self.shuffle = shuffle

    def __iter__(self) -> Iterator[list[SampleKey]]:
        start = self.start_position + self.rank * self.batch_size
        order_epoch, order = -1, torch.empty(0)
        while True:
            batch = []
            for position in range(start, start + self.batch_size):
                epoch, place = divmod(position, self.num_samples)
                if self.shuffle and epoch != order_epoch:
                    order_epoch, order = epoch, epoch_order(self.num_samples, self.seed, epoch)
                batch.append(SampleKey(epoch, int(order[place]) if self.shuffle else place, position))
            yield batch
            start += self.batch_size * self.world_size


def check_slice(batch_size: int, rank: int, world_size: int, start_position: int) -> None:
    """Raise a ValueError unless batch_size >= 1, 0 <= rank < world_size and start_position >= 0."""
    if batch_size < 1:
        raise ValueError(f"--train_batch_size is {batch_size}: it must be at least 1")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} processes: it must be in 0..{world_size - 1}")
    if start_position < 0:
        raise ValueError(f"start_position is {start_position}: it must be at least 0")

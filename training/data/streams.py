"""Streamed data sets, which are read while they are downloaded and have no index."""

import itertools
from collections.abc import Iterator
from typing import Any

import datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset, get_worker_info

from distillation.noise import derive_seed
from training.data.errors import DataError, reason
from training.data.order import SampleKey, check_slice
from training.data.reader import Replacements, SampleReader, UnusableSample

SHUFFLE_BUFFER = 1000  # undecoded rows in the shuffle buffer of each worker


class StreamingImageTextDataset(IterableDataset):
    """Endless samples of a stream for one process, with the same fields as `ImageTextDataset`.

    Processes and workers read disjoint shards (files) of the data set, or every n-th row if there are too few shards.
    When its own shards end, each of them starts a new epoch with a new shuffle. The k-th row that a worker reads takes
    the k-th place in its batches even if it is unusable and replaced by the next, so a resumed run can skip rows
    without decoding them. It still has to read them, and it needs the same number of processes and workers.

    Args:
        rows: the stream.
        reader: makes samples from rows. `sample_id` is the position, because the rows of a stream have no index.
        batch_size, rank, world_size, start_position: as in `GlobalBatchSampler`.

    Raises:
        DataError: `start_position` is not a whole number of global batches.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        reader: SampleReader,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start_position: int = 0,
    ):
        check_slice(batch_size, rank, world_size, start_position)
        self.start_batch, rest = divmod(start_position, batch_size * world_size)
        if rest:
            raise DataError(
                f"--streaming cannot resume at sample {start_position} with batches of {batch_size * world_size} "
                f"(--train_batch_size {batch_size} x {world_size} processes): use the batch size and the number of "
                "processes of the run that is resumed"
            )
        self.rows = rows
        self.reader = reader
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def epoch_rows(self, epoch: int) -> datasets.IterableDataset:
        """The rows of this process in the order of `epoch`. `datasets` splits them between the workers."""
        shuffled = self.rows.shuffle(seed=derive_seed(self.reader.seed, epoch), buffer_size=SHUFFLE_BUFFER)
        return split_dataset_by_node(shuffled, self.rank, self.world_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        first = self.start_batch // num_workers * self.batch_size
        unusable, waiting = Replacements(self.reader), []
        for number, (epoch, row) in enumerate(self._rows_without_end()):
            if number < first:
                continue
            batch, place = divmod(number, self.batch_size)
            batch = batch * num_workers + worker_id  # a DataLoader takes the workers' batches in turn
            position = (batch * self.world_size + self.rank) * self.batch_size + place
            waiting.append(SampleKey(epoch, position, position))
            try:
                samples = [self.reader(row, key, position) for key in waiting]
            except UnusableSample as error:
                unusable.add(position, error)
                continue
            for passed_over, sample in zip(range(len(samples) - 1, -1, -1), samples):
                yield sample | {"replaced": passed_over}
            unusable, waiting = Replacements(self.reader), []

    def _rows_without_end(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for epoch in itertools.count():
            row = None
            for row in _read(self.epoch_rows(epoch)):
                yield epoch, row
            if row is None:
                raise DataError(
                    f"--streaming: process {self.rank} of {self.world_size} gets no rows: use fewer processes or "
                    "--dataloader_num_workers, or raise --max_train_samples"
                )


def _read(rows: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
    iterator = iter(rows)
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # readers of the formats and the connection raise many types of errors
            raise DataError(
                f"--streaming: the stream cannot be read any further: {reason(error)}. Fix the damaged file, or check "
                "the connection; then resume"
            ) from error
        yield row

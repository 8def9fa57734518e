"""The parts of a run, which `prepare` in train_add.py makes."""

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from distillation.schedule import NoiseSchedule
from training.data.reader import SampleReader
from training.data.sources import Rows, count_rows
from training.encoding.batches import BatchMaker
from training.encoding.embeddings import Embeddings
from training.models.families import Family
from training.models.networks import Networks
from training.options import Options
from training.options.derived import effective_batch_size, samples_per_iteration
from training.run.players import Players
from training.run.state import RunState


@dataclass
class Run:
    """The parts of a run.

    Attributes:
        family, teacher_family: model families of student and teacher; one object if they use the same repo.
        schedules: noise schedules of student and teacher.
        networks: the networks as loaded.
        players: the two networks that are trained, with their losses and optimizers.
        state: counters of the run.
        rows, reader: the data set, and the reader that makes a sample from a row.
        embeddings: source of the embeddings of images and captions, computed or cached.
        make_batch: makes a `Batch` from samples.
        arguments: flags and facts by name, for checkpoints, trackers and the model card.
        total_steps: number of iterations.
    """

    options: Options
    accelerator: Accelerator
    family: Family
    teacher_family: Family
    schedules: tuple[NoiseSchedule, NoiseSchedule]
    networks: Networks
    players: Players
    state: RunState
    rows: Rows
    reader: SampleReader
    embeddings: Embeddings
    make_batch: BatchMaker
    arguments: dict[str, Any]
    total_steps: int

    @property
    def effective_batch_size(self) -> int:
        """Number of samples per update of a network, over all processes."""
        return effective_batch_size(self.options, self.accelerator.num_processes)

    @property
    def samples_per_iteration(self) -> int:
        """Samples that an iteration reads, over all processes."""
        return samples_per_iteration(self.options, self.accelerator.num_processes)

    @property
    def num_samples(self) -> int | None:
        """Number of rows of the data set; None for a stream."""
        return count_rows(self.rows)

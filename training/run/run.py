"""The parts of a run, as `prepare` of train_add.py makes them."""

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
from training.options.derived import effective_batch_size
from training.run.players import Players
from training.run.state import RunState


@dataclass
class Run:
    """Everything that a run consists of.

    Attributes:
        family, teacher_family: the repos of student and teacher; one object if they are the same repo.
        schedules: student's and teacher's noise schedule.
        networks: as they were loaded.
        players: the two networks that train, with their losses and optimizers.
        state: the counters.
        rows, reader: the data set, and how a sample is made of a row.
        embeddings: of images and captions, computed or cached.
        make_batch: from samples to what an iteration starts from.
        arguments: flags and facts by name, for checkpoints, trackers and the card.
        total_steps: iterations.
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
        """Samples per iteration, over all processes."""
        return effective_batch_size(self.options, self.accelerator.num_processes)

    @property
    def num_samples(self) -> int | None:
        """Rows of the data set; None for a stream."""
        return count_rows(self.rows)

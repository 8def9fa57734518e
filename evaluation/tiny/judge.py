"""Measurement of systems on the tiny world, with its held-out captions and its evaluator."""

from functools import cached_property
from pathlib import Path

import diffusers
import transformers
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from evaluation.errors import EvaluationError, require_packages
from evaluation.metrics import Evaluator
from evaluation.runs.environment import pick_device
from evaluation.tiny import task as tiny_task
from evaluation.tiny.split import Split, read_split
from evaluation.tiny.systems import System, SystemFigures

FILES = (
    "data/train/metadata.jsonl",
    "data/test/metadata.jsonl",
    "teacher/model_index.json",
    "feature_network/config.json",
    "clip/config.json",
    "evaluator/config.json",
)


def check_tiny_dir(folder: Path, flag: str) -> None:
    """Raise an EvaluationError if `folder`, given by `flag`, is not a tiny world."""
    for name in FILES:
        if not (folder / name).exists():
            raise EvaluationError(f"{flag} {folder}: no {name} there; build it with `python -m examples.tiny.build`.")


def quiet_libraries() -> None:
    """Disable the progress bars for loading, which would be shown for each file."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


class TinyJudge:
    """Measures systems with the same captions and seeds, as in the demo.

    Data and evaluator are loaded at the first measurement.

    Args:
        tiny_dir: output folder of `python -m examples.tiny.build`.
        num_samples: number of images for Frechet distance and alignment, at least 2.

    Raises:
        EvaluationError: the folder is not a tiny world, or there are too few samples.
    """

    def __init__(self, tiny_dir: Path, num_samples: int):
        require_packages("torchmetrics")
        check_tiny_dir(tiny_dir, "--tiny_dir")
        if num_samples < 2:
            raise EvaluationError(f"--num_samples {num_samples}: a covariance needs at least 2.")
        self.tiny_dir, self.num_samples = tiny_dir, num_samples
        self.device = pick_device(None)

    @property
    def protocol(self) -> str:
        """Description of the measurement."""
        return f"{self.num_samples} held-out captions, judged by the evaluator of {self.tiny_dir}"

    @cached_property
    def _splits(self) -> tuple[Split, Split]:
        return read_split(self.tiny_dir / "data" / "train"), read_split(self.tiny_dir / "data" / "test")

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator.from_pretrained(str(self.tiny_dir / "evaluator")).to(self.device)

    @cached_property
    def _task(self) -> tiny_task.Task:
        train, test = self._splits
        captions, labels = test.captions + train.captions, test.labels + train.labels
        shown = tiny_task.choose_captions(captions, labels, tiny_task.CAPTIONS)
        return tiny_task.make_task(test, shown, self._evaluator.label_ids, self.num_samples, seed=0)

    @cached_property
    def _real(self) -> tuple[SystemFigures, Tensor]:
        return tiny_task.measure_real(self._evaluator, *self._splits, self._task, seed=0)

    @property
    def floor(self) -> SystemFigures:
        """The figures of training images compared with held-out images."""
        return self._real[0]

    def measure_system(self, pipeline: DiffusionPipeline, system: System) -> SystemFigures:
        """Measure one system, and move `pipeline` to the device."""
        pipeline.to(self.device).set_progress_bar_config(disable=True)
        total = system.network_calls * len(self._task.prompts)
        with tqdm(total=total, unit="call", unit_scale=True, leave=False) as progress:
            return tiny_task.measure_system(pipeline, system, self._task, self._evaluator, self._real[1], progress)[0]

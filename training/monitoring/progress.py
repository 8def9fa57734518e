"""Progress of a run: figures for the trackers, a progress bar or log lines, and an error after many skipped steps."""

import logging
import sys
import time
from collections import deque
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from training.errors import UserError
from training.monitoring.metrics import Metrics
from training.run.run import Run

logger = logging.getLogger(__name__)

READ_EVERY = 10  # iterations between reads of the running figures; each read waits for the device
LOG_SECONDS = 30  # seconds between log lines if there is no progress bar
COUNTED = ("replaced", "enlarged")  # facts of the data that each process counts in its own samples
SHOWN = {"D": "loss/discriminator", "G": "loss/adversarial", "distill": "loss/distillation"}


class NonFiniteError(UserError, RuntimeError):
    """Too many iterations in a row had a NaN or infinite loss or gradient."""


class Progress:
    """Averages the figures of iterations and shows them every `READ_EVERY` iterations.

    On a terminal, a progress bar is shown; otherwise a line is logged every `LOG_SECONDS`, so that a bar does not fill
    a log file.
    """

    def __init__(self, run: Run):
        self.run, self.skipped_before = run, run.state.skipped
        self.metrics = Metrics()
        self.counts = dict.fromkeys(COUNTED, 0)  # at this process, since the last call of `show`
        self.recent_ids: deque[list[int]] = deque(maxlen=READ_EVERY)
        self.has_bar = run.accelerator.is_local_main_process and sys.stderr.isatty()
        self.bar = tqdm(
            total=run.total_steps, initial=run.state.step, desc="ADD", unit="it", smoothing=0.05,
            disable=not self.has_bar,
        )  # fmt: skip
        self.started, self.first_step, self.last_line = time.monotonic(), run.state.step, 0.0

    def add(self, figures: dict[str, Tensor], skipped: Tensor, loaded: list[dict[str, Any]]) -> None:
        """Add one iteration without waiting for the device.

        Args:
            figures: scalars by name, on the device.
            skipped: 1.0 if a step was skipped, else 0.0; on the device.
            loaded: samples of each micro-batch.
        """
        self.metrics.add(figures)
        self.metrics.skip(skipped)
        for name in COUNTED:
            self.counts[name] += sum(samples[name] for samples in loaded)
        self.recent_ids.append([int(i) for samples in loaded for i in samples["sample_ids"]])
        self.bar.update(1)

    def show(self) -> None:
        """Log the means since the last call, and the counts since the run began. Processes wait here for each other.

        Raises:
            NonFiniteError: `--max_skipped_steps` or more iterations in a row were not finite.
        """
        values, skipped, longest = self.metrics.read()
        if not values:
            return
        run, state = self.run, self.run.state
        state.skipped = self.skipped_before + skipped
        self._add_up_counts()
        values["images_per_second"] = self._iterations_per_second() * run.samples_per_iteration
        values["skipped_steps"] = state.skipped
        values["replaced_samples"], values["enlarged_samples"] = state.replaced, state.enlarged
        for name, updater in run.players.updaters.items():
            values[f"learning_rate/{name}"] = updater.schedule.get_last_lr()[0]
        run.accelerator.log(values, step=state.step)
        self._show(values)
        if longest >= run.options.optimization.max_skipped_steps:
            raise NonFiniteError(self._explain(longest))

    def _add_up_counts(self) -> None:
        """Move the counts of all processes into the run's state."""
        counts = torch.tensor([self.counts[name] for name in COUNTED], device=self.run.accelerator.device)
        totals: Any = self.run.accelerator.reduce(counts, "sum")
        for name, total in zip(COUNTED, totals.tolist()):
            setattr(self.run.state, name, getattr(self.run.state, name) + total)
        self.counts = dict.fromkeys(COUNTED, 0)

    def close(self) -> None:
        """Close the progress bar."""
        self.bar.close()

    def _iterations_per_second(self) -> float:
        return (self.run.state.step - self.first_step) / max(time.monotonic() - self.started, 1e-9)

    def _show(self, values: dict[str, float]) -> None:
        shown = {name: f"{values[key]:.3f}" for name, key in SHOWN.items() if key in values}
        shown["img/s"] = f"{values['images_per_second']:.1f}"
        if self.run.state.skipped:
            shown["skipped"] = str(self.run.state.skipped)
        self.bar.set_postfix(shown)
        is_last = self.run.state.step >= self.run.total_steps
        if not self.has_bar and (is_last or time.monotonic() - self.last_line >= LOG_SECONDS):
            self.last_line = time.monotonic()
            text = ", ".join(f"{name} {value}" for name, value in shown.items())
            logger.info("Iteration %d of %d: %s", self.run.state.step, self.run.total_steps, text)

    def _explain(self, longest: int) -> str:
        return (
            f"{longest} iterations in a row had a NaN or infinite loss or gradient, the last of them within the "
            f"{READ_EVERY} iterations up to {self.run.state.step}; their steps were skipped, so the weights are "
            f"unchanged. Ids of the last samples: {[i for ids in self.recent_ids for i in ids]}. Lower --learning_rate "
            "or --discriminator_learning_rate, or use --mixed_precision bf16, and resume from the last checkpoint"
        )

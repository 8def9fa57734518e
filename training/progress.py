"""What a run shows while it goes on: figures for the trackers and the bar; and the end of a run that is lost."""

import argparse
from collections import deque

from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from training.checkpoints.run_state import RunState
from training.errors import UserError
from training.metrics import Metrics

READ_EVERY = 10  # iterations between reads of the running figures; each read waits for the device
SHOWN = {"D": "loss/discriminator", "G": "loss/adversarial", "distill": "loss/distillation"}


class NonFiniteError(UserError, RuntimeError):
    """Too many iterations in a row had a NaN or infinite loss."""


class Monitor:
    """Averages an iteration's figures, and shows them every `READ_EVERY` iterations.

    Args:
        global_batch: samples an iteration, over all devices.
        skipped_before: iterations that an earlier part of the run has skipped.
    """

    def __init__(self, accelerator: Accelerator, args: argparse.Namespace, global_batch: int, skipped_before: int):
        self.accelerator, self.global_batch = accelerator, global_batch
        self.max_skipped_steps, self.skipped_before = args.max_skipped_steps, skipped_before
        self.metrics = Metrics()
        self.recent_ids: deque[list[int]] = deque(maxlen=READ_EVERY)

    def add(self, values: dict[str, Tensor], skipped: Tensor, sample_ids: list[int]) -> None:
        """One iteration's scalars, whether its step was skipped (1.0 or 0.0), and its samples. Does not wait."""
        self.metrics.add(values)
        self.metrics.skip(skipped)
        self.recent_ids.append(sample_ids)

    def read(self, state: RunState, progress: tqdm) -> None:
        """Log the means since the last read.

        Raises:
            NonFiniteError: too many iterations in a row were not finite; no weight was touched by them.
        """
        values, skipped, longest = self.metrics.read()
        if not values:
            return
        state.skipped = self.skipped_before + skipped
        values["images_per_second"] = (progress.format_dict["rate"] or 0.0) * self.global_batch
        values["skipped_steps"], values["replaced_samples"] = state.skipped, state.replaced
        for name, updater in state.updaters.items():
            values[f"learning_rate/{name}"] = updater.schedule.get_last_lr()[0]
        self.accelerator.log(values, step=state.step)
        progress.set_postfix(
            {k: f"{values[v]:.3f}" for k, v in SHOWN.items() if v in values}
            | {"img/s": f"{values['images_per_second']:.1f}"}
            | ({"skipped": state.skipped} if state.skipped else {})
        )
        if longest >= self.max_skipped_steps:
            raise NonFiniteError(
                f"{longest} iterations in a row had a NaN or infinite loss or gradient, the last of them at iteration "
                f"{state.step} or up to {READ_EVERY} before it; no weight was touched by them. Sample ids since: "
                f"{[i for ids in self.recent_ids for i in ids]}. Lower --learning_rate or "
                "--discriminator_learning_rate, or use --mixed_precision bf16, and resume from the last checkpoint"
            )

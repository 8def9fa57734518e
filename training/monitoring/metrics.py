"""Running means of scalars, kept on the device and read together every few iterations."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def average(values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each scalar over the micro-batches of an iteration, detached; NaN values are left out.

    A figure for the samples at one timestep is NaN in a micro-batch without such samples, so its mean is that of the
    other micro-batches. A NaN that is due to an error is detected from the loss by `training.optimization.Updater`.
    """
    return {
        name: torch.stack([v[name].detach().float() for v in values if name in v]).nanmean()
        for name in dict.fromkeys(name for v in values for name in v)
    }


class Metrics:
    """Means of device scalars since the last read, and the longest run of skipped steps.

    Reading a scalar makes the host wait for the device. Reading in every iteration would leave the device idle between
    steps.
    """

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.skipped_total: Tensor | None = None
        self.skipped_in_a_row: Tensor | None = None
        self.longest_run: Tensor | None = None

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the scalars of one iteration. Non-finite values are left out of the means; `skip` counts them."""
        for name, value in values.items():
            value = value.detach().float()
            finite = torch.isfinite(value)
            self.sums[name] = self.sums.get(name, 0.0) + torch.where(finite, value, 0.0)
            self.counts[name] = self.counts.get(name, 0) + finite

    def skip(self, skipped: Tensor) -> None:
        """Count one iteration. `skipped` is 1.0 if its step was skipped, else 0.0."""
        if self.skipped_total is None or self.skipped_in_a_row is None or self.longest_run is None:
            self.skipped_total = self.skipped_in_a_row = self.longest_run = torch.zeros_like(skipped)
        self.skipped_total = self.skipped_total + skipped
        self.skipped_in_a_row = (self.skipped_in_a_row + skipped) * skipped
        self.longest_run = torch.maximum(self.longest_run, self.skipped_in_a_row)

    def read(self) -> tuple[dict[str, float], int, int]:
        """Return the means since the last read, the total number of skipped steps, and the longest run of them.

        Waits for the device once.
        """
        names = list(self.sums)
        if self.skipped_total is None or self.longest_run is None:
            return {}, 0, 0
        means = [self.sums[n] / self.counts[n].clamp(min=1) for n in names]
        *values, total, longest = torch.stack([*means, self.skipped_total, self.longest_run]).tolist()
        self.sums, self.counts = {}, {}
        return dict(zip(names, values)), int(total), int(longest)

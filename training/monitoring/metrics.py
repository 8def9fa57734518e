"""Running figures, kept on the device and read all at once every few iterations."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def average(values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each scalar over the micro-batches of an iteration, detached. NaN stands for "none of these".

    A figure of the samples at one timestep is NaN in a micro-batch that has none; the others give its mean. Elsewhere
    a NaN is a fault, which the guarded update sees in the loss itself.
    """
    return {
        name: torch.stack([v[name].detach().float() for v in values if name in v]).nanmean()
        for name in dict.fromkeys(name for v in values for name in v)
    }


class Metrics:
    """Means of device scalars since the last read, and the longest run of skipped steps.

    Reading a scalar makes the host wait for the device; doing it every iteration would leave an accelerator idle
    between steps.
    """

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.skipped_total: Tensor | None = None
        self.skipped_in_a_row: Tensor | None = None
        self.longest_run: Tensor | None = None

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one iteration's scalars. Non-finite ones are left out of the means: `skip` counts them."""
        for name, value in values.items():
            value = value.detach().float()
            finite = torch.isfinite(value)
            self.sums[name] = self.sums.get(name, 0.0) + torch.where(finite, value, 0.0)
            self.counts[name] = self.counts.get(name, 0) + finite

    def skip(self, skipped: Tensor) -> None:
        """Count an iteration whose step was skipped (1.0) or taken (0.0)."""
        if self.skipped_total is None or self.skipped_in_a_row is None or self.longest_run is None:
            self.skipped_total = self.skipped_in_a_row = self.longest_run = torch.zeros_like(skipped)
        self.skipped_total = self.skipped_total + skipped
        self.skipped_in_a_row = (self.skipped_in_a_row + skipped) * skipped
        self.longest_run = torch.maximum(self.longest_run, self.skipped_in_a_row)

    def read(self) -> tuple[dict[str, float], int, int]:
        """Means since the last read, skipped steps in all, and the longest run of them. One wait for the device."""
        names = list(self.sums)
        if self.skipped_total is None or self.longest_run is None:
            return {}, 0, 0
        means = [self.sums[n] / self.counts[n].clamp(min=1) for n in names]
        *values, total, longest = torch.stack([*means, self.skipped_total, self.longest_run]).tolist()
        self.sums, self.counts = {}, {}
        return dict(zip(names, values)), int(total), int(longest)

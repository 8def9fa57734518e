"""Running figures: means between reads, and runs of skipped steps."""

import pytest
import torch

from training.metrics import Metrics


def test_means_since_the_last_read_leave_out_what_is_not_finite():
    metrics = Metrics()
    for value in (1.0, float("nan"), 4.0):
        metrics.add({"loss": torch.tensor(value)})
        metrics.skip(torch.tensor(float(value != value)))
    values, skipped, _ = metrics.read()
    assert values["loss"] == pytest.approx(2.5)
    assert skipped == 1
    metrics.add({"loss": torch.tensor(7.0)})
    assert metrics.read()[0]["loss"] == pytest.approx(7.0)


def test_longest_run_counts_consecutive_skips_across_reads():
    metrics = Metrics()
    runs = []
    for skipped in (1, 1, 0, 1, 1, 1, 0):
        metrics.add({"loss": torch.tensor(0.0)})
        metrics.skip(torch.tensor(float(skipped)))
        runs.append(metrics.read()[2])
    assert runs == [1, 2, 2, 2, 2, 3, 3]
    assert metrics.skipped_total == 5

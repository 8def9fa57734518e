"""Running figures: means between reads, and runs of skipped steps."""

import pytest
import torch

from training.monitoring.metrics import Metrics, average


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


def test_average_over_micro_batches_leaves_out_those_without_such_samples():
    nan = float("nan")
    rows = [{"a": 1.0, "b": nan, "c": nan}, {"a": 3.0, "b": 5.0, "c": nan}, {"a": 5.0, "b": 7.0, "c": nan, "d": 2.0}]
    values = average([{name: torch.tensor(value) for name, value in row.items()} for row in rows])
    assert values["c"].isnan()
    assert {name: values[name].item() for name in ("a", "b", "d")} == {"a": 3.0, "b": 6.0, "d": 2.0}

"""Decisions that all processes make together; the other process's answer is given."""

from types import SimpleNamespace

import pytest

from training.errors import UserError
from training.processes import agreement
from training.processes.agreement import DisagreementError, agree

ACCELERATOR = SimpleNamespace(num_processes=2, process_index=0)


@pytest.fixture
def other(monkeypatch):
    """`other(result, message)` sets what process 1 found. The gathering itself is tested in tests/scripts."""

    def answer(result, message=None):
        monkeypatch.setattr(agreement, "gather_object", lambda mine: [*mine, (result, message)])

    return answer


def decide():
    return "checkpoint-2"


def fail():
    raise UserError("the disk is gone")


def test_equal_results_are_the_decision(other):
    other("checkpoint-2")
    assert agree(ACCELERATOR, "--flag", decide) == "checkpoint-2"


def test_different_results_end_every_process(other):
    other("checkpoint-1")
    with pytest.raises(DisagreementError, match=r"different results \(process 0: checkpoint-2; process 1: check"):
        agree(ACCELERATOR, "--flag", decide)


def test_an_error_of_another_process_ends_this_one(other):
    other(None, "the disk is gone")
    with pytest.raises(DisagreementError, match="--flag: process 1 stopped: the disk is gone"):
        agree(ACCELERATOR, "--flag", decide)


def test_an_error_of_this_process_reaches_the_others_before_it_is_raised(monkeypatch):
    """Or they would wait for its answer."""
    sent = []
    monkeypatch.setattr(agreement, "gather_object", lambda mine: sent.extend(mine) or [*mine, ("checkpoint-2", None)])
    with pytest.raises(UserError, match="the disk is gone"):
        agree(ACCELERATOR, "--flag", fail)
    assert sent == [(None, "the disk is gone")]


def test_one_process_agrees_with_itself():
    assert agree(SimpleNamespace(num_processes=1), "--flag", decide) == "checkpoint-2"

"""Decisions that all processes of a run must agree on. An error in one process is raised in all of them."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from training.errors import UserError

Decision = TypeVar("Decision")


class DisagreementError(UserError):
    """The processes of a run get different results, such as different checkpoints or data sets."""


def agree(accelerator: Accelerator, subject: str, decide: Callable[[], Decision]) -> Decision:
    """Call `decide` in every process, and return its result if all results are equal.

    An error in one process is raised in all of them, so that no process waits for one that has stopped. All processes
    must call this function.

    Args:
        subject: subject of the decision for the error message, such as "--resume_from_checkpoint".
        decide: function that is called once per process; its result must be picklable and comparable.

    Raises:
        UserError: `decide` raised it in this process.
        DisagreementError: `decide` raised a `UserError` in another process, or the results differ.
    """
    if accelerator.num_processes == 1:
        return decide()
    result, error = None, None
    try:
        result = decide()
    except UserError as raised:
        error = raised
    outcomes = gather_object([(result, None if error is None else str(error))])
    if error is not None:
        raise error
    for rank, (_, message) in enumerate(outcomes):
        if message is not None:
            raise DisagreementError(f"{subject}: process {rank} stopped: {message}")
    results = [outcome for outcome, _ in outcomes]
    if any(other != results[0] for other in results):
        seen = "; ".join(f"process {rank}: {found}" for rank, found in enumerate(results))
        raise DisagreementError(
            f"{subject}: the processes get different results ({seen}). Check that all of them read the same disk"
        )
    return results[accelerator.process_index]

"""Decisions that all processes of a run make together: none goes on alone, and none waits for one that has failed."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from training.errors import UserError

Decision = TypeVar("Decision")


class DisagreementError(UserError):
    """The processes of a run see different things, such as another checkpoint or another data set."""


def agree(accelerator: Accelerator, subject: str, decide: Callable[[], Decision]) -> Decision:
    """Let every process call `decide`, and return its result if all results are equal.

    An error at one process is raised at all of them, so that no process waits for one that has stopped.

    Args:
        subject: what is decided on, for the error, such as "--resume_from_checkpoint".
        decide: called once at every process; its result can be pickled and compared.

    Raises:
        UserError: `decide` raised it at this process.
        DisagreementError: `decide` raised a `UserError` at another process, or the results differ.
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
            f"{subject}: the processes see different things ({seen}). Check that all of them read the same disk"
        )
    return results[accelerator.process_index]

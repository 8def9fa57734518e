"""Calls that only the main process makes, such as taking a lock, with the outcome sent to all processes."""

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from training.errors import UserError


def on_main_process(
    accelerator: Accelerator, call: Callable[[], Any], elsewhere: Callable[[], Any] | None = None
) -> Any:
    """Call `call` on the main process alone. To be reached by every process.

    An error on the main process is raised in every process; otherwise the other processes would wait forever at their
    next collective.

    Args:
        accelerator: of the run.
        call: takes nothing; what it returns is sent to the other processes, so it must be small and picklable.
        elsewhere: called at the other processes meanwhile, for what `call` needs of them.

    Returns:
        The result of `call`, in every process.

    Raises:
        UserError: `call` raised a `UserError`; it is raised in every process with the same message.
    """
    outcome: list[Any] = [None, None, UserError.status]
    error: UserError | None = None
    if accelerator.is_main_process:
        try:
            outcome[0] = call()
        except UserError as raised:
            error, outcome[1], outcome[2] = raised, str(raised), raised.status
    elif elsewhere is not None:
        elsewhere()
    broadcast_object_list(outcome)  # from process 0; nothing happens where it is the only one
    if error is not None:
        raise error
    if outcome[1] is not None:
        refused = UserError(outcome[1])
        refused.status = outcome[2]
        raise refused
    return outcome[0]

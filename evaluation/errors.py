"""The error whose message is for the user: printed without a traceback."""

import sys
from collections.abc import Callable


class EvaluationError(ValueError):
    """Something asked for cannot be done: the message names the flag or file, what it got and the mend."""


def exit_status(command: Callable[[], int | None]) -> int:
    """Run a command. Returns what it returns, 0 for None, and 2 where it ends with an `EvaluationError`."""
    try:
        return command() or 0
    except EvaluationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

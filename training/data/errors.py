"""The error for unusable training data, and one-line descriptions of errors that libraries raise."""

from training.errors import UserError


class DataError(UserError):
    """Training data cannot be loaded or used. The message names the flag, its value and the fix."""


def reason(error: BaseException) -> str:
    """Describe an error in one line: the type and the first line of the original error in the chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(f"{type(error).__name__}: {lines[0]:.300}" if lines else type(error).__name__)


def one_line(text: str) -> str:
    """`text` with line breaks and other unprintable characters replaced by `?`."""
    return "".join(c if c.isprintable() else "?" for c in text)

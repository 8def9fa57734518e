"""The error for training data that cannot be used, and how an error of a library is told in one line."""

from training.errors import UserError


class DataError(UserError):
    """Training data that cannot be loaded or used: names the flag, the value it got and the fix."""


def reason(error: BaseException) -> str:
    """What an error of a library says, in one line: the type and first line of the error that caused all others."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(f"{type(error).__name__}: {lines[0]:.300}" if lines else type(error).__name__)


def one_line(text: str) -> str:
    """`text` with `?` in place of line breaks and all else that cannot be printed."""
    return "".join(c if c.isprintable() else "?" for c in text)

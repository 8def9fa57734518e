"""Runs a command in this process as its caller sees it."""

from collections.abc import Callable, Sequence


def exit_status(main: Callable[[Sequence[str]], None], words: Sequence[str]) -> int:
    """The status that a process of the command would end with."""
    try:
        main(words)
    except SystemExit as error:
        return error.code or 0
    return 0

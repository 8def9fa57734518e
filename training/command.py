"""The frame of every command: parse, run, and turn an error that a person can fix into one line and an exit status."""

import argparse
import signal
from collections.abc import Callable, Sequence

from training.errors import UserError

DEBUG_HELP = "Show the traceback of an error that would otherwise be one line."


def run_command(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, run: Callable[[argparse.Namespace], None]
) -> None:
    """Parse `argv` and call `run` with the result.

    A `UserError` ends the process with its message alone and its `status`; Ctrl-C ends it with status 130. Any other
    exception is a bug of the command and keeps its traceback.

    Args:
        parser: of the command; gets `--debug`, which re-raises errors in place of printing them.
        argv: the words after the command's name; None takes those of the process.
        run: the command itself.

    Raises:
        SystemExit: a `UserError` or an interruption.
        UserError: with `--debug`.
    """
    parser.add_argument("--debug", action="store_true", help=DEBUG_HELP)
    args = parser.parse_args(argv)
    try:
        run(args)
    except UserError as error:
        if args.debug:
            raise
        parser.exit(error.status, f"{parser.prog}: {error.label}{error}\n")
    except KeyboardInterrupt:
        if args.debug:
            raise
        parser.exit(128 + signal.SIGINT, f"{parser.prog}: interrupted\n")

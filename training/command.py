"""The frame of every command: parse, run, and turn an error that a person can fix into one line and an exit status."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from training.errors import UserError

INSTALLED = "add-"  # how the name of every installed command begins: those of pyproject.toml
DEBUG_HELP = "Show the traceback of an error that would otherwise be one line."


def command_name(module: str) -> str:
    """The name by which this process was called, for its messages and for the command line that it records.

    Args:
        module: of the command, such as `training.publish`.

    Returns:
        The name of the installed script, such as `add-publish`, or else `python -m` with the module's name.
    """
    script = Path(sys.argv[0]).stem
    return script if script.startswith(INSTALLED) else f"python -m {module}"


def first_line(docstring: str | None) -> str:
    """The first line of a docstring, for `--help`; empty without one, as under `python -OO`."""
    return (docstring or "").split("\n")[0]


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

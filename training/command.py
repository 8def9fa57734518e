"""Entry point shared by all commands: parse the command line, run, and print user errors as one line."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from training.errors import UserError

INSTALLED = "add-"  # prefix of the installed commands in pyproject.toml
DEBUG_HELP = "Show the full traceback of an error instead of a one-line message."


def command_name(module: str) -> str:
    """Return the name by which this process was called, for messages and for the command line that it records.

    Args:
        module: module of the command, such as `training.publish`.

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

    For a `UserError`, the message is printed and the process exits with the error's `status`; for Ctrl-C it exits with
    status 130. Any other exception is a bug and keeps its traceback.

    Args:
        parser: parser of the command; `--debug`, which re-raises errors instead of printing them, is added to it.
        argv: arguments of the command; None takes those of the process.
        run: function that runs the command with the parsed arguments.

    Raises:
        SystemExit: `run` raised a `UserError` or was interrupted.
        UserError: `run` raised it, with `--debug`.
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

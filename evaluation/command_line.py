"""Helpers for the command lines of the evaluation: one-line errors, subcommands with `--debug`, and value parsers."""

import argparse
import json
import math
from typing import Any

from training.command import DEBUG_HELP, command_name


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line without the usage, and refers to `--help`."""

    def error(self, message: str) -> None:
        """Print one line to stderr and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (`{self.prog} --help` lists the options)\n")


def make_parser(module: str, description: str | None) -> OneLineParser:
    """Make a parser that prints `description` without reformatting it.

    Args:
        module: module of the command, such as `evaluation`.
        description: usually the docstring of the command's module.
    """
    return OneLineParser(
        prog=command_name(module), description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_subcommand(commands: argparse._SubParsersAction, name: str, summary: str) -> argparse.ArgumentParser:
    """Add a subcommand that accepts `--debug`, like the command itself (see `run_command`).

    Args:
        commands: result of `add_subparsers`.
        name: name of the subcommand.
        summary: one sentence for `--help`.
    """
    parser = commands.add_parser(
        name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    # SUPPRESS, because a default would overwrite a `--debug` that is given before the subcommand.
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=DEBUG_HELP)
    return parser


def parse_json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object, such as `{"eta": 1.0}`."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object, such as '{{\"eta\": 1.0}}'")
    return value


def parse_count(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parse_share(text: str) -> float:
    """Parse a number in [0, 1]."""
    value = parse_finite(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def parse_finite(text: str) -> float:
    """Parse a number other than NaN and infinity."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value

"""What the command lines of the evaluation share: one-line errors, subcommands with `--debug`, and parsed values."""

import argparse
import json
import math
from typing import Any

from training.command import DEBUG_HELP, command_name


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line that points to `--help`, without the usage of every option."""

    def error(self, message: str) -> None:
        """Exit with status 2 after one line."""
        self.exit(2, f"{self.prog}: error: {message} (`{self.prog} --help` lists the options)\n")


def make_parser(module: str, description: str | None) -> OneLineParser:
    """A parser that shows `description` as it is written.

    Args:
        module: of the command, such as `evaluation`.
        description: usually the docstring of the command's module.
    """
    return OneLineParser(
        prog=command_name(module), description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_subcommand(commands: argparse._SubParsersAction, name: str, summary: str) -> argparse.ArgumentParser:
    """Add a subcommand that also takes `--debug`, which `run_command` declares for the command itself.

    Args:
        commands: what `add_subparsers` returned.
        name: the word that is typed.
        summary: one sentence for `--help`.
    """
    parser = commands.add_parser(
        name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    # Suppressed, because a default here would overwrite a `--debug` that was given before the subcommand.
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=DEBUG_HELP)
    return parser


def parse_json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object, such as `{"eta": 1.0}`."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object, such as '{{\"eta\": 1.0}}'")
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

"""From a command line to a run: parse, refuse, open the models, train."""

import argparse
from collections.abc import Sequence

from .arguments import ArgumentError
from .checks import check_arguments
from .families import Family, open_families
from .loop import train
from .publish_layout import PublishError


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None, family: type[Family]) -> None:
    """Train a student of `family` as the command line says.

    A refusal ends the program with its message alone and status 2: argparse's own way would print the usage of eighty
    flags above the one line that matters.
    """
    args = parser.parse_args(argv)
    try:
        check_arguments(args)
        train(*open_families(args, family), args)
    except ArgumentError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except PublishError as error:  # the model is in --output_dir all the same
        parser.exit(1, f"{parser.prog}: error: {error}\n")

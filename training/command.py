"""From a command line to a run: parse, refuse, open the models, train."""

import argparse
from collections.abc import Sequence

import torch

from .arguments import ArgumentError
from .checks import check_arguments
from .families import Family, open_families
from .interruption import Interrupted
from .loop import train
from .memory import advice
from .publish_layout import PublishError


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None, family: type[Family]) -> None:
    """Train a student of `family` as the command line says.

    A refusal ends the program with its message alone and status 2: argparse's own way would print the usage of eighty
    flags above the one line that matters. A run that a signal has ended leaves a checkpoint and 128 + the signal.
    """
    args = parser.parse_args(argv)
    try:
        check_arguments(args)
        train(*open_families(args, family), args)
    except ArgumentError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except Interrupted as interruption:
        parser.exit(interruption.status, f"{parser.prog}: {interruption}\n")
    except torch.OutOfMemoryError as error:
        parser.exit(1, f"{parser.prog}: error: out of memory: {error}\n{parser.prog}: {advice(args)}\n")
    except PublishError as error:  # the model is in --output_dir all the same
        parser.exit(1, f"{parser.prog}: error: {error}\n")

#!/usr/bin/env python
"""Distil SDXL into a student that samples in 1 to 4 steps (ADD, 2311.17042).

What is SDXL's own stands in `training/families/stable_diffusion_xl.py`, the loop and its flags in `training/`.
"""

import argparse
from collections.abc import Sequence

from training.command import run_command
from training.loop import run_training
from training.models.families import StableDiffusionXL
from training.options.arguments import add_sdxl_flags, make_parser


def make_sdxl_parser() -> argparse.ArgumentParser:
    """The shared flags, and SDXL's own."""
    parser = make_parser(__doc__.split("\n")[0])
    add_sdxl_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run_command(make_sdxl_parser(), argv, lambda args: run_training(args, StableDiffusionXL))


if __name__ == "__main__":
    main()

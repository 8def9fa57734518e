#!/usr/bin/env python
"""Distil Stable Diffusion 1.x or 2.x into a student that samples in 1 to 4 steps (ADD, 2311.17042).

What is Stable Diffusion's own stands in `training/families/stable_diffusion.py`, the loop and its flags in `training/`.
"""

from collections.abc import Sequence

from training.command import run_command
from training.loop import run_training
from training.models.families import StableDiffusion
from training.options.arguments import make_parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run_command(make_parser(__doc__.split("\n")[0]), argv, lambda args: run_training(args, StableDiffusion))


if __name__ == "__main__":
    main()

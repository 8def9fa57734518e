#!/usr/bin/env python
"""Distil Stable Diffusion 3 or 3.5 into a student that samples in 1 to 4 steps (ADD, 2311.17042).

The run is that of train_add.py. What is particular to these models, flow matching by a transformer, three text encoders
and latents of 16 channels, is in training/models/families/stable_diffusion_3.py; here is the one flag group that they
add.
"""

from collections.abc import Sequence

from train_add import train
from training.command import run_command
from training.models.families import StableDiffusion3
from training.options import Options, make_parser
from training.options.models import SD3Options


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = make_parser(__doc__.split("\n")[0], [SD3Options])
    run_command(parser, argv, lambda args: train(Options.of(args), StableDiffusion3))


if __name__ == "__main__":
    main()

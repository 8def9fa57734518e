#!/usr/bin/env python
"""Distil Stable Diffusion 3 or 3.5 into a student that samples in 1 to 4 steps (ADD, 2311.17042).

The training loop is in train_add.py. The transformer, its flow matching, the three text encoders and the latents of 16
channels are in training/models/families/stable_diffusion_3.py; this script only adds the flags of Stable Diffusion 3.
"""

from collections.abc import Sequence

from train_add import train
from training.command import run_command
from training.models.families import StableDiffusion3
from training.options import Options, make_parser
from training.options.models import SD3Options


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process."""
    parser = make_parser(__doc__.split("\n")[0], [SD3Options])
    run_command(parser, argv, lambda args: train(Options.of(args), StableDiffusion3))


if __name__ == "__main__":
    main()

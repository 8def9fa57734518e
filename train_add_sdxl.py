#!/usr/bin/env python
"""Distil SDXL into a student that samples in 1 to 4 steps (ADD, 2311.17042).

The training loop is in train_add.py. The two text encoders, pooled embeddings and size conditioning of SDXL are in
training/models/families/stable_diffusion_xl.py; this script only adds the flags of SDXL.
"""

from collections.abc import Sequence

from train_add import train
from training.command import first_line, run_command
from training.models.families import StableDiffusionXL
from training.options import Options, make_parser
from training.options.models import SDXLOptions


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process."""
    parser = make_parser(first_line(__doc__), [SDXLOptions])
    run_command(parser, argv, lambda args: train(Options.of(args), StableDiffusionXL))


if __name__ == "__main__":
    main()

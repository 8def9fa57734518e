"""What a run is told: every flag, declared once, and all that follows from the flags.

options.py            all groups together, as they travel through a run
models.py, data.py, method.py, optimization.py, output.py, hardware.py     the declarations
declaration.py        what a declaration says: type, default, range, help, resume, privacy, memory saved
parser.py             the command line and --config FILE
refusals.py           combinations that cannot work; those of the discriminator in discriminator_refusals.py
derived.py            values that follow from several flags or from the model
resuming.py           what may not change when a run is resumed
description.py        the summary at the start of a run
memory_advice.py      what to do when memory does not suffice
"""

from training.options.options import Options
from training.options.parser import make_parser

__all__ = ["Options", "make_parser"]

"""Command-line options of a run: the declaration of each flag, and everything that is derived from the flags.

options.py            all groups of flags together in one frozen dataclass
models.py, data.py, method.py, optimization.py, output.py, hardware.py     the declarations
declaration.py        how a flag is declared: type, default, range, help, resume, privacy, memory saved
parser.py             the command line and --config FILE
refusals.py           combinations that cannot work; those of the discriminator in discriminator_refusals.py
derived.py            values that follow from several flags or from the model
resuming.py           what may not change when a run is resumed
description.py        the summary at the start of a run
memory_advice.py      list of memory-saving flags for an out-of-memory error
"""

from training.options.options import Options
from training.options.parser import make_parser

__all__ = ["Options", "make_parser"]

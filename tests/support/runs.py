"""The training scripts, each in its world; and a run as they prepare it, with batches for it."""

import hashlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType

from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

import train_add
import train_add_sd3
import train_add_sdxl
from pipelines import ADDPipeline, ADDSD3Pipeline, ADDXLPipeline
from tests.support import tiny_world
from training.data.dataset import make_dataloader
from training.models.families import StableDiffusion, StableDiffusion3, StableDiffusionXL
from training.options import Options, make_parser
from training.options.models import SD3Options, SDXLOptions
from training.options.refusals import refuse
from training.processes.accelerator import make_accelerator


@dataclass
class Script:
    """One of the scripts, the world it is run in, what it publishes, and the folder of its network there."""

    module: ModuleType
    world: Path
    stock: type
    ours: type
    network: str

    def run(self, output_dir, *extra):
        self.module.main(tiny_world.flags(self.world, output_dir, *extra))


SCRIPTS = {
    "sd": ("world", train_add, StableDiffusionPipeline, ADDPipeline, "unet"),
    "sdxl": ("sdxl_world", train_add_sdxl, StableDiffusionXLPipeline, ADDXLPipeline, "unet"),
    "sd3": ("sd3_world", train_add_sd3, StableDiffusion3Pipeline, ADDSD3Pipeline, "transformer"),
}


def run(world, output_dir, *extra):
    """`train_add.py` in `world`, in this process."""
    train_add.main(tiny_world.flags(world, output_dir, *extra))


def options_of(*argv, more=()):
    """The options that these words of a command line give."""
    return Options.of(make_parser("test", more).parse_args([str(word) for word in argv]))


def parse(world, output_dir, *extra, more=()):
    """The options of a run in `world` with the flags of `tiny_world.flags` and `extra`."""
    return options_of(*tiny_world.flags(world, output_dir, *extra), more=more)


def prepare_run(world, output_dir, *extra, family=StableDiffusion):
    """The parts of a run of `family`, as the training script makes them."""
    more = {StableDiffusionXL: (SDXLOptions,), StableDiffusion3: (SD3Options,)}.get(family, ())
    options = parse(world, output_dir, *extra, more=more)
    refuse(options)
    return train_add.prepare(options, family, make_accelerator(options))


def make_batches(prepared, batch_size=4, count=1):
    """The first batches of the run's data, as iteration 0 would have them."""
    loader = make_dataloader(prepared.rows, prepared.reader, batch_size=batch_size)
    return [prepared.make_batch(loaded, 0) for loaded in islice(loader, count)]


def digest(module):
    """Hash of every parameter and buffer."""
    h = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        h.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()

"""The training scripts, each in its world; and a trainer as they make it, with batches for it, without running."""

import hashlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

import train_add
import train_add_sdxl
from pipelines import ADDPipeline, ADDXLPipeline
from tests import tiny_world
from training.data.dataset import make_dataloader
from training.loop import Trainer
from training.models.families import StableDiffusion, open_families
from training.options.arguments import make_parser
from training.options.refusals import check_arguments


@dataclass
class Script:
    """One of the two scripts, the world it is run in, and what it publishes."""

    module: ModuleType
    world: Path
    stock: type
    ours: type

    def run(self, output_dir, *extra):
        self.module.main(tiny_world.flags(self.world, output_dir, *extra))


SCRIPTS = {
    "sd": ("world", train_add, StableDiffusionPipeline, ADDPipeline),
    "sdxl": ("sdxl_world", train_add_sdxl, StableDiffusionXLPipeline, ADDXLPipeline),
}


def run(world, output_dir, *extra):
    """`train_add.py` in `world`, in this process."""
    train_add.main(tiny_world.flags(world, output_dir, *extra))


def make_trainer(world, output_dir, *extra, family=StableDiffusion):
    """A `Trainer` of `family` in `world` with the flags of `tiny_world.flags` and `extra`."""
    args = make_parser("test").parse_args(tiny_world.flags(world, output_dir, *extra))
    check_arguments(args)
    return Trainer(*open_families(args, family), args)


def make_batches(trainer, batch_size=4, count=1):
    """The first batches of the trainer's data, as iteration 0 would have them."""
    loader = make_dataloader(trainer.rows, trainer.reader, batch_size=batch_size)
    return [trainer.make_batch(loaded, 0) for loaded in islice(loader, count)]


def digest(module):
    """Hash of every parameter and buffer."""
    h = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        h.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()

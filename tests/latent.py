"""Runs with the latent discriminator, whose flags leave out the models that judge pixels."""

from tests.support import tiny_world
from tests.support.runs import options_of
from train_add import prepare
from training.models.families import StableDiffusion
from training.options.models import SDXLOptions
from training.options.refusals import refuse
from training.processes.accelerator import make_accelerator

_OF_PIXELS = ("--discriminator_feature_model", "--discriminator_text_model", "--discriminator_image_model")


def latent_flags(world, output_dir, *extra):
    """`tiny_world.flags` of a run with `--discriminator latent`."""
    flags = tiny_world.flags(world, output_dir)
    kept = [i for i in range(len(flags)) if not {flags[i], flags[i - 1]} & set(_OF_PIXELS)]
    return [*(flags[i] for i in kept), "--discriminator", "latent", *map(str, extra)]


def latent_options(world, output_dir, *extra, more=(SDXLOptions,)):
    """The same, parsed."""
    return options_of(*latent_flags(world, output_dir, *extra), more=more)


def prepare_latent(world, output_dir, *extra, family=StableDiffusion):
    """The parts of a run of `family`, as the training script makes them."""
    options = latent_options(world, output_dir, *extra)
    refuse(options)
    return prepare(options, family, make_accelerator(options))

"""Model families of students and teachers."""

from diffusers import DiffusionPipeline

from training.errors import OptionError
from training.models.families.base import Family
from training.models.families.stable_diffusion import StableDiffusion
from training.models.families.stable_diffusion_3 import StableDiffusion3
from training.models.families.stable_diffusion_xl import StableDiffusionXL
from training.models.sources import load_config, loading
from training.options.derived import needs_teacher
from training.options.options import Options

__all__ = ["Family", "StableDiffusion", "StableDiffusion3", "StableDiffusionXL", "open_families"]

FAMILY_OF_PIPELINE = {family.stock_class: family for family in (StableDiffusion, StableDiffusionXL, StableDiffusion3)}


def open_families(options: Options, expected: type[Family]) -> tuple[Family, Family]:
    """Open the repos of student and teacher without loading weights.

    They are one object where the student is made of the teacher's repo, and where no teacher is needed.

    Args:
        expected: model family of the student.

    Raises:
        OptionError: a repo does not exist or contains another kind of model, or the options do not suit its family.
    """
    models, own = options.models, options.models.pretrained_student_model
    separate = own is not None
    of_teacher = ("pretrained_teacher_model", models.pretrained_teacher_model, models.revision, models.variant)
    of_student = ("pretrained_student_model", own, models.student_revision,
                  models.student_variant) if own is not None else of_teacher  # fmt: skip
    flag = of_student[0]
    own_vae = (options.sdxl.pretrained_vae_model_name_or_path, options.sdxl.vae_revision)
    student = _open(options, *of_student, models.cache_dir, *own_vae)
    if not isinstance(student, expected):
        raise OptionError(
            f"--{flag} got {student.name!r}: it is a {student.stock_class}, but this script trains a "
            f"{expected.stock_class}; use {student.script}"
            + ("" if separate else ", or give the student with --pretrained_student_model")
        )
    student.check(options)
    if options.output.export_single_file is not None and not student.has_single_file:
        raise OptionError(
            f"--export_single_file got {options.output.export_single_file!r}: students of a {student.stock_class} can "
            "be published in diffusers' layout only; leave the flag out"
        )
    if not separate or not needs_teacher(options):
        return student, student
    teacher = _open(options, *of_teacher, models.cache_dir, None, None)
    teacher.check(options)
    _check_latent_shapes(options, student, teacher)
    return student, teacher


def _check_latent_shapes(options: Options, student: Family, teacher: Family) -> None:
    """Raises: OptionError: the teacher's latents of an image have another shape than the student's, whose shape the
    noise of a sample is drawn in."""
    shapes = [(family.latent_channels, family.factor) for family in (student, teacher)]
    if shapes[0] != shapes[1]:
        (own, _), (other, factor) = shapes
        raise OptionError(
            f"--pretrained_teacher_model got {options.models.pretrained_teacher_model!r}: it has latents of {other} "
            f"channels at 1/{factor} of the image's size and {student.name} of {own} at 1/{student.factor}; use a "
            "teacher whose latents have the student's shape"
        )


def _open(
    options: Options,
    flag: str,
    name: str,
    revision: str | None,
    variant: str | None,
    cache_dir: str | None,
    vae_name: str | None,
    vae_revision: str | None,
) -> Family:
    """Open the repo `name` with the family of the pipeline class in its model_index.json."""
    with loading(flag, name, "a diffusers pipeline, with its model_index.json"):
        found = load_config(DiffusionPipeline, name, revision=revision, cache_dir=cache_dir)["_class_name"]
    if found not in FAMILY_OF_PIPELINE:
        *most, last = FAMILY_OF_PIPELINE
        raise OptionError(
            f"--{flag} got {name!r}: it is a {found}, but only {', '.join(most)} and {last} are supported"
        )
    source = (name, revision, variant, cache_dir, vae_name, vae_revision, flag)
    if found == StableDiffusion3.stock_class:
        return StableDiffusion3(*source, settings=options.sd3)
    return FAMILY_OF_PIPELINE[found](*source)

"""Model families of students and teachers."""

from diffusers import DiffusionPipeline

from training.errors import OptionError
from training.models.families.base import Family
from training.models.families.stable_diffusion import StableDiffusion
from training.models.families.stable_diffusion_xl import StableDiffusionXL
from training.models.sources import loading
from training.options.derived import needs_teacher
from training.options.options import Options

__all__ = ["Family", "StableDiffusion", "StableDiffusionXL", "open_families"]

FAMILY_OF_PIPELINE = {family.stock_class: family for family in (StableDiffusion, StableDiffusionXL)}


def open_families(options: Options, expected: type[Family]) -> tuple[Family, Family]:
    """Open the repos of student and teacher without loading weights.

    They are one object where the student is made of the teacher's repo, and where no teacher is needed.

    Args:
        expected: model family of the student.

    Raises:
        OptionError: a repo does not exist or contains another kind of model.
    """
    models, separate = options.models, options.models.pretrained_student_model is not None
    of_teacher = ("pretrained_teacher_model", models.pretrained_teacher_model, models.revision, models.variant)
    of_student = ("pretrained_student_model", models.pretrained_student_model, models.student_revision,
                  models.student_variant) if separate else of_teacher  # fmt: skip
    flag = of_student[0]
    own_vae = (options.sdxl.pretrained_vae_model_name_or_path, options.sdxl.vae_revision)
    student = _open(*of_student, models.cache_dir, *own_vae)
    if not isinstance(student, expected):
        raise OptionError(
            f"--{flag} got {student.name!r}: it is a {student.stock_class}, but this script trains a "
            f"{expected.stock_class}; use {student.script}"
            + ("" if separate else ", or give the student with --pretrained_student_model")
        )
    if not separate or not needs_teacher(options):
        return student, student
    teacher = _open(*of_teacher, models.cache_dir, None, None)
    return student, teacher


def _open(
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
        found = DiffusionPipeline.load_config(name, revision=revision, cache_dir=cache_dir)["_class_name"]
    if found not in FAMILY_OF_PIPELINE:
        raise OptionError(
            f"--{flag} got {name!r}: it is a {found}, but only {' and '.join(FAMILY_OF_PIPELINE)} are supported"
        )
    return FAMILY_OF_PIPELINE[found](name, revision, variant, cache_dir, vae_name, vae_revision, flag)

"""The model families that can be distilled or teach."""

from diffusers import DiffusionPipeline

from training.errors import OptionError
from training.models.families.base import Family
from training.models.families.stable_diffusion import StableDiffusion
from training.models.families.stable_diffusion_xl import StableDiffusionXL
from training.models.sources import load_config, loading
from training.options.options import Options

__all__ = ["Family", "StableDiffusion", "StableDiffusionXL", "open_families"]

FAMILY_OF_PIPELINE = {family.stock_class: family for family in (StableDiffusion, StableDiffusionXL)}


def open_families(options: Options, expected: type[Family]) -> tuple[Family, Family]:
    """Student's and teacher's family. Loads no weights.

    They are one object where the student is made of the teacher's repo, and where `--distillation_weight 0` needs no
    teacher.

    Args:
        expected: of the student.

    Raises:
        OptionError: a repo holds another kind of model, or none.
    """
    models, own = options.models, options.models.pretrained_student_model
    separate = own is not None
    of_teacher = ("pretrained_teacher_model", models.pretrained_teacher_model, models.revision, models.variant)
    of_student = ("pretrained_student_model", own, models.student_revision,
                  models.student_variant) if own is not None else of_teacher  # fmt: skip
    flag = of_student[0]
    own_vae = (options.sdxl.pretrained_vae_model_name_or_path, options.sdxl.vae_revision)
    student = _open(*of_student, models.cache_dir, *own_vae)
    if not isinstance(student, expected):
        raise OptionError(
            f"--{flag} got {student.name!r}: it holds a {student.stock_class}, and this script trains a "
            f"{expected.stock_class}; use {student.script}"
            + ("" if separate else ", or name the student with --pretrained_student_model")
        )
    if not separate or options.method.distillation_weight == 0:
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
    """The family of the repo `name`, by the pipeline class that its model_index.json names."""
    with loading(flag, name, "a diffusers pipeline, with its model_index.json"):
        found = load_config(DiffusionPipeline, name, revision=revision, cache_dir=cache_dir)["_class_name"]
    if found not in FAMILY_OF_PIPELINE:
        raise OptionError(
            f"--{flag} got {name!r}: it holds a {found}, but only {' and '.join(FAMILY_OF_PIPELINE)} can be used"
        )
    return FAMILY_OF_PIPELINE[found](name, revision, variant, cache_dir, vae_name, vae_revision, flag)

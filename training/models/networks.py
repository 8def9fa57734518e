"""Loading of a run's networks: student, teacher, latent spaces, discriminator and condition encoders."""

import logging
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from diffusers import AutoencoderTiny, ModelMixin, UNet2DConditionModel

from discriminator import ImageCondition, TextCondition
from discriminator.pretrained import load_frozen, move
from distillation.latents import LatentSpace
from pipelines.precision import keep_output_in_float32
from training.errors import OptionError
from training.models.families import Family
from training.models.lora import add_lora, checkpointed
from training.models.quantization import keep_norms_in_float32, quantize_linears
from training.models.sources import loading
from training.options.derived import (
    HALF,
    frozen_dtype,
    needs_teacher,
    precision,
    prediction_type_of,
    uses_latent_discriminator,
)
from training.options.method import NONE
from training.options.options import Options

logger = logging.getLogger(__name__)
QUANTIZED = ("8bit", "4bit")


@dataclass
class Networks:
    """Student and teacher, UNets or transformers, with their latent spaces.

    Attributes:
        student: trainable, or with trainable adapters.
        teacher: frozen; with `--use_lora` on the teacher's own repo the student itself, to be called without its
            adapter; None where neither its targets nor its features are needed.
        latents: the student's latent space.
        teacher_latents: the teacher's where it is another one, else None.
    """

    student: Any
    teacher: Any
    latents: LatentSpace
    teacher_latents: LatentSpace | None


def load_networks(options: Options, student: Family, teacher: Family, accelerator: Accelerator) -> Networks:
    """Load the networks of both families; `student is teacher` if both use the same repo.

    Raises:
        OptionError: the latent spaces differ, but the options require a shared one.
    """
    dtype, device = frozen_dtype(accelerator), accelerator.device
    student.load_text_encoders(dtype, device)
    student.load_vae(dtype, device)
    latents = LatentSpace(student.vae, _tiny_decoder(options, dtype, device), options.hardware.decode_crop_halo)
    teacher_latents = None
    has_teacher = needs_teacher(options)
    if has_teacher and teacher is not student:
        teacher.load_text_encoders(dtype, device)
        teacher.load_vae(dtype, device)
        own = LatentSpace(teacher.vae)
        if not latents.is_same_space(own):
            check_other_latent_space(options)
            teacher_latents = own
        logger.info(
            "Teacher and student have %s", "different latent spaces" if teacher_latents else "the same latent space"
        )
    unet = _load_student(options, student, dtype, device)
    teacher_unet = None
    if has_teacher:
        shared = options.lora.use_lora and teacher is student
        teacher_unet = unet if shared else _load_frozen(teacher, options.hardware.teacher_precision, dtype, device)
    for network in {unet, teacher_unet} - {None}:
        if options.hardware.enable_xformers_memory_efficient_attention:
            network.enable_xformers_memory_efficient_attention()
    if options.hardware.gradient_checkpointing:
        enable_gradient_checkpointing(options, unet, teacher_unet, latents)
    return Networks(unet, teacher_unet, latents, teacher_latents)


def enable_gradient_checkpointing(
    options: Options, student: UNet2DConditionModel, teacher: UNet2DConditionModel | None, latents: LatentSpace
) -> None:
    """Recompute activations of all that gradients flow through: with the latent discriminator, the teacher too."""
    student.enable_gradient_checkpointing(checkpointed)
    latents.vae.enable_gradient_checkpointing()
    if uses_latent_discriminator(options) and teacher is not student:
        teacher.enable_gradient_checkpointing()


def prepare_output_layers(unet: UNet2DConditionModel, options: Options, prediction_type: str) -> None:
    """With bf16, make the outermost layers of an epsilon student compute in float32, unless `--allow_bf16_output`.

    Call it before an adapter is added, so that the adapter is not changed. A quantized base is not changed either.
    """
    is_amplified = precision(options) == "bf16" and prediction_type == "epsilon"
    is_quantized = options.lora.use_lora and options.hardware.teacher_precision in QUANTIZED
    if is_amplified and not is_quantized and not options.hardware.allow_bf16_output:
        keep_output_in_float32(unet)


def check_latent_spaces(options: Options, student: Family, teacher: Family) -> None:
    """Check the latent spaces by their configs: different scaling factors mean different latent spaces.

    Raises:
        OptionError: the latent spaces differ, but the options require a shared one.
    """
    if needs_teacher(options) and student.scaling_factor != teacher.scaling_factor:
        check_other_latent_space(options)


def check_other_latent_space(options: Options) -> None:
    """Raise an OptionError if an option requires that teacher and student share their latent space."""
    teacher, crop = options.models.pretrained_teacher_model, options.hardware.decode_crop_size
    reason = f"--pretrained_teacher_model {teacher} has another latent space than the student"
    if uses_latent_discriminator(options):
        raise OptionError(
            f"--discriminator got 'latent': {reason}, and the teacher cannot judge latents of another space; use "
            "--discriminator pixel"
        )
    if options.method.distillation_space == "latent":
        raise OptionError(
            f"--distillation_space got 'latent': {reason}, so their latents cannot be compared; use "
            "--distillation_space pixel"
        )
    if crop is not None:
        raise OptionError(
            f"--decode_crop_size got {crop}: {reason} and has to encode the whole decoded image; leave the flag out"
        )


def _tiny_decoder(options: Options, dtype: torch.dtype, device: torch.device) -> AutoencoderTiny | None:
    if options.hardware.pretrained_tiny_vae_model is None:
        return None
    name = options.hardware.pretrained_tiny_vae_model
    where = {"revision": options.hardware.tiny_vae_revision, "cache_dir": options.models.cache_dir}
    with loading("pretrained_tiny_vae_model", name, "an AutoencoderTiny"):
        return load_frozen(AutoencoderTiny, name, torch_dtype=dtype, **where).to(device)


def _load_student(options: Options, family: Family, dtype: torch.dtype, device: torch.device) -> Any:
    """Load the trainable network, either in float32 or with float32 adapters on a frozen base."""
    if options.lora.use_lora:
        base = _load_frozen(family, options.hardware.teacher_precision, dtype, device)
        if options.hardware.teacher_precision in QUANTIZED:
            keep_norms_in_float32(base)
        prepare_output_layers(base, options, prediction_type_of(family.scheduler))
        try:
            add_lora(base, options.lora, family.lora_target_modules)
        except ValueError as error:
            raise OptionError(f"--lora_target_modules got {options.lora.lora_target_modules}: {error}") from error
        return base.train()
    unet = family.load_unet(torch.float32, device)
    if options.models.student_init == "random":
        unet = move(cast(ModelMixin, family.network_class.from_config(unet.config)), device)
    prepare_output_layers(unet, options, prediction_type_of(family.scheduler))
    return unet.train().requires_grad_(True)


def _load_frozen(family: Family, precision: str | None, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a frozen network in `--teacher_precision`, by default the precision of the run."""
    if precision in QUANTIZED:
        # bitsandbytes computes in half precision; bf16 has a larger range than fp16.
        half = dtype if dtype in HALF.values() else torch.bfloat16
        return quantize_linears(family.load_unet(half, device), int(precision[0]))
    precisions: dict[str | None, torch.dtype] = {**HALF, "fp32": torch.float32}
    return family.load_unet(precisions.get(precision, dtype), device)


def load_conditions(options: Options, accelerator: Accelerator) -> tuple[TextCondition | None, ImageCondition | None]:
    """Load the encoders of c_text and c_img; None for a disabled condition.

    Raises:
        OptionError: an encoder cannot be loaded, or is a model of another kind.
    """

    def load(kind: type, flag: str, needed: str):
        name = getattr(options.discriminator, flag)
        if options.method.adversarial_weight == 0 or name == NONE:
            return None
        with loading(flag, name, needed):
            revision = getattr(options.discriminator, f"{flag}_revision")
            encoder = kind.from_pretrained(name, revision, options.models.cache_dir, frozen_dtype(accelerator))
        return encoder.to(accelerator.device)

    return (
        load(TextCondition, "discriminator_text_model", "a CLIP with projection"),
        load(ImageCondition, "discriminator_image_model", "a self-supervised vision transformer, such as DINOv2"),
    )

"""The networks of a run: which are loaded, in which precision, and which are shared."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from diffusers import AutoencoderTiny, UNet2DConditionModel

from discriminator import Discriminator, FeatureNetwork, ImageCondition, TextCondition
from discriminator.pretrained import load_frozen, move
from distillation.latents import LatentSpace
from distillation.losses import Losses
from distillation.schedule import NoiseSchedule
from distillation.student import Condition
from distillation.teacher import Teacher
from pipelines.precision import keep_output_in_float32
from training.errors import OptionError
from training.models.families import Family
from training.models.lora import add_lora, without_adapter
from training.models.quantization import keep_norms_in_float32, quantize_linears
from training.models.sources import loading
from training.options.derived import HALF, frozen_dtype, guidance_scale, precision
from training.options.method import NONE
from training.options.options import Options

logger = logging.getLogger(__name__)
QUANTIZED = ("8bit", "4bit")


@dataclass
class Networks:
    """Student and teacher with their latent spaces.

    Attributes:
        student: trainable, or with trainable adapters.
        teacher: the frozen UNet; with `--use_lora` on the teacher's own repo the student itself, to be called without
            its adapter; None without distillation.
        latents: the student's latent space.
        teacher_latents: the teacher's where it is another one, else None.
    """

    student: UNet2DConditionModel
    teacher: UNet2DConditionModel | None
    latents: LatentSpace
    teacher_latents: LatentSpace | None


def load_networks(options: Options, student: Family, teacher: Family, accelerator: Accelerator) -> Networks:
    """Load both families; `student is teacher` where one repo is both.

    Raises:
        OptionError: the latent spaces differ, and the options need them to be one.
    """
    dtype, device = frozen_dtype(accelerator), accelerator.device
    student.load_text_encoders(dtype, device)
    student.load_vae(dtype, device)
    latents = LatentSpace(student.vae, _tiny_decoder(options, dtype, device), options.hardware.decode_crop_halo)
    teacher_latents = None
    distils = options.method.distillation_weight > 0
    if distils and teacher is not student:
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
    if distils:
        shared = options.lora.use_lora and teacher is student
        teacher_unet = unet if shared else _load_frozen(teacher, options.hardware.teacher_precision, dtype, device)
    for network in {unet, teacher_unet} - {None}:
        if options.hardware.enable_xformers_memory_efficient_attention:
            network.enable_xformers_memory_efficient_attention()
    if options.hardware.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        latents.vae.enable_gradient_checkpointing()
    return Networks(unet, teacher_unet, latents, teacher_latents)


def prepare_output_layers(unet: UNet2DConditionModel, options: Options, prediction_type: str) -> None:
    """With bf16, let the outermost layers of an epsilon student compute in float32, unless a flag says otherwise.

    To be called before an adapter is added, whose weights stay as they are. A quantized base is left as it is.
    """
    is_amplified = precision(options) == "bf16" and prediction_type == "epsilon"
    is_quantized = options.lora.use_lora and options.hardware.teacher_precision in QUANTIZED
    if is_amplified and not is_quantized and not options.hardware.allow_bf16_output:
        keep_output_in_float32(unet)


def check_latent_spaces(options: Options, student: Family, teacher: Family) -> None:
    """Refuse what the configs alone show: different scaling factors mean different latent spaces.

    Raises:
        OptionError: the latent spaces differ, and the options need them to be one.
    """
    if options.method.distillation_weight > 0 and student.scaling_factor != teacher.scaling_factor:
        check_other_latent_space(options)


def check_other_latent_space(options: Options) -> None:
    """Raises: OptionError: an option that only works where teacher and student share their latents."""
    teacher, crop = options.models.pretrained_teacher_model, options.hardware.decode_crop_size
    reason = f"--pretrained_teacher_model {teacher} has another latent space than the student"
    if options.method.distillation_space == "latent":
        raise OptionError(
            f"--distillation_space got 'latent': {reason}, and latents of different spaces cannot be subtracted; "
            "use --distillation_space pixel"
        )
    if crop is not None:
        raise OptionError(
            f"--decode_crop_size got {crop}: {reason}, so it must see the whole decoded image to encode it; leave the "
            "flag out"
        )


def _tiny_decoder(options: Options, dtype: torch.dtype, device: torch.device) -> AutoencoderTiny | None:
    if options.hardware.pretrained_tiny_vae_model is None:
        return None
    name = options.hardware.pretrained_tiny_vae_model
    where = {"revision": options.hardware.tiny_vae_revision, "cache_dir": options.models.cache_dir}
    with loading("pretrained_tiny_vae_model", name, "an AutoencoderTiny"):
        return load_frozen(AutoencoderTiny, name, torch_dtype=dtype, **where).to(device)


def _load_student(options: Options, family: Family, dtype: torch.dtype, device: torch.device) -> UNet2DConditionModel:
    """The trainable UNet: all of it in float32, or adapters in float32 on a base in the run's precision."""
    if options.lora.use_lora:
        base = _load_frozen(family, options.hardware.teacher_precision, dtype, device)
        if options.hardware.teacher_precision in QUANTIZED:
            keep_norms_in_float32(base)
        prepare_output_layers(base, options, family.scheduler.config["prediction_type"])
        try:
            add_lora(base, options.lora)
        except ValueError as error:
            raise OptionError(f"--lora_target_modules got {options.lora.lora_target_modules}: {error}") from error
        return base.train()
    unet = family.load_unet(torch.float32, device)
    if options.models.student_init == "random":
        random = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(unet.config))
        unet = move(random, device)
    prepare_output_layers(unet, options, family.scheduler.config["prediction_type"])
    return unet.train().requires_grad_(True)


def _load_frozen(
    family: Family, precision: str | None, dtype: torch.dtype, device: torch.device
) -> UNet2DConditionModel:
    """A frozen UNet in `--teacher_precision`, or in the run's own."""
    if precision in QUANTIZED:
        # bitsandbytes computes in half precision; bf16 has the range that fp16 lacks.
        half = dtype if dtype in HALF.values() else torch.bfloat16
        return quantize_linears(family.load_unet(half, device), int(precision[0]))
    precisions: dict[str | None, torch.dtype] = {**HALF, "fp32": torch.float32}
    return family.load_unet(precisions.get(precision, dtype), device)


def _in_own_precision(unet: UNet2DConditionModel) -> Callable:
    """`unet` as a callable that computes in the precision of its weights, whatever the run's is."""

    def convert(condition: Condition) -> Condition:
        return {k: convert(v) if isinstance(v, Mapping) else v.to(unet.dtype) for k, v in condition.items()}

    def call(x_t: torch.Tensor, t: torch.Tensor, **condition):
        with torch.autocast(x_t.device.type, enabled=False):
            return unet(x_t.to(unet.dtype), t, **convert(condition))

    return call


def make_discriminator(options: Options, condition_dim: int, accelerator: Accelerator) -> Discriminator | None:
    """F with new heads; None without adversarial training.

    Args:
        condition_dim: D of the heads' condition, 0 for none.

    Raises:
        OptionError: F cannot be loaded, or cannot be used.
    """
    if options.method.adversarial_weight == 0:
        return None
    own = options.discriminator
    name = own.discriminator_feature_model
    with loading("discriminator_feature_model", name, "a vision transformer, such as facebook/dinov2-small"):
        network = FeatureNetwork.from_pretrained(
            name,
            input_size=own.discriminator_input_size,
            revision=own.discriminator_feature_model_revision,
            cache_dir=options.models.cache_dir,
            dtype=frozen_dtype(accelerator),
        )
    discriminator = Discriminator(network, condition_dim, not own.no_diffaugment, own.discriminator_norm)
    return discriminator.to(accelerator.device)


def load_conditions(options: Options, accelerator: Accelerator) -> tuple[TextCondition | None, ImageCondition | None]:
    """The encoders of c_text and c_img, None where a condition is off.

    Raises:
        OptionError: an encoder cannot be loaded, or is of another kind.
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


def make_losses(
    options: Options,
    networks: Networks,
    student: torch.nn.Module,
    discriminator: Discriminator | None,
    schedules: tuple[NoiseSchedule, NoiseSchedule],
    accelerator: Accelerator,
) -> Losses:
    """The losses of this run. `student` is the network as it was prepared for distribution."""
    teacher = None
    if networks.teacher is not None:
        unet = networks.teacher
        call = without_adapter(unet) if unet is networks.student else _in_own_precision(unet)
        teacher = Teacher(call, schedules[1], guidance_scale(options), options.method.teacher_steps)
    return Losses(
        student=student,
        schedule=schedules[0],
        latents=networks.latents,
        teacher=teacher,
        teacher_latents=networks.teacher_latents,
        discriminator=discriminator,
        heads=None if discriminator is None else accelerator.prepare_model(discriminator.heads),
        adversarial_weight=options.method.adversarial_weight,
        distillation_weight=options.method.distillation_weight,
        distillation_weighting=options.method.distillation_weighting,
        distillation_space=options.method.distillation_space,
        r1_gamma=options.discriminator.r1_gamma,
        reconstruct_real=options.discriminator.reconstruct_real,
        student_timesteps=options.method.student_timesteps,
        autocast=accelerator.autocast,
    )

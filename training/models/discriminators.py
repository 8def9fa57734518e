"""The discriminator of a run: on pixels, on latents, or none."""

from accelerate import Accelerator
from diffusers import UNet2DConditionModel

from discriminator import Discriminator, FeatureNetwork, LatentDiscriminator, UNetFeatures, find_taps
from training.errors import OptionError
from training.models.families import Family
from training.models.networks import Networks
from training.models.sources import loading
from training.models.teacher_calls import teacher_call
from training.options.derived import frozen_dtype, uses_latent_discriminator
from training.options.options import Options


def make_discriminator(
    options: Options, networks: Networks, condition_dim: int, accelerator: Accelerator
) -> Discriminator | LatentDiscriminator | None:
    """F with new heads; None without adversarial training.

    Args:
        networks: as they were loaded; the latent discriminator's features are the teacher's.
        condition_dim: D of the heads' condition, 0 for none.

    Raises:
        OptionError: F cannot be loaded, or cannot be used.
    """
    if options.method.adversarial_weight == 0:
        return None
    if uses_latent_discriminator(options):
        return make_latent_discriminator(options, networks, condition_dim).to(accelerator.device)
    return make_pixel_discriminator(options, condition_dim, accelerator)


def make_pixel_discriminator(options: Options, condition_dim: int, accelerator: Accelerator) -> Discriminator:
    """A vision transformer with new heads.

    Raises:
        OptionError: F cannot be loaded, or cannot be used.
    """
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


def make_latent_discriminator(options: Options, networks: Networks, caption_dim: int) -> LatentDiscriminator:
    """New heads on the teacher's UNet, which with LoRA is the student's base."""
    taps = find_taps(networks.teacher, options.discriminator.discriminator_taps)
    features = UNetFeatures(networks.teacher, teacher_call(networks), taps)
    return LatentDiscriminator(features, caption_dim, options.discriminator.discriminator_norm)


def check_taps(options: Options, teacher: Family) -> None:
    """Refuse parts without attention by the teacher's config, before any weight is loaded.

    Raises:
        OptionError: `--discriminator_taps` names a part that has no attention block.
    """
    if not uses_latent_discriminator(options):
        return
    if teacher.network != "unet":
        raise OptionError(
            f"--discriminator got 'latent': the teacher {teacher.name} has no UNet, whose features it is for; use "
            "--discriminator pixel"
        )
    with loading("pretrained_teacher_model", teacher.name, f"a whole {teacher.stock_class} in diffusers' layout"):
        config = UNet2DConditionModel.load_config(teacher.name, subfolder="unet", **teacher.where)
    kinds = {
        **{f"down.{i}": kind for i, kind in enumerate(config["down_block_types"])},
        "mid": config.get("mid_block_type") or "",
        **{f"up.{i}": kind for i, kind in enumerate(config["up_block_types"])},
    }
    known = [block for block, kind in kinds.items() if "CrossAttn" in kind]
    for part in options.discriminator.discriminator_taps:
        if not any(block == part or block.startswith(f"{part}.") for block in known):
            raise OptionError(
                f"--discriminator_taps got {part!r}: it names no attention block of {teacher.name}; give down, mid, "
                f"up or some of {', '.join(known)}"
            )

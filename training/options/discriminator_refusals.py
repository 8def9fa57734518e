"""Flags of the discriminator that cannot work together: those of pixels and those of latents."""

import dataclasses
import os

from training.errors import OptionError
from training.options.derived import decodes, effective_batch_size, uses_latent_discriminator
from training.options.method import NONE, DiscriminatorOptions
from training.options.options import Options

_FEATURES = "the latent discriminator's features are the teacher's"
_NO_IMAGES = "the latent discriminator is shown no images"
_CAPTION = "the latent discriminator is told the teacher's own pooled caption; leave it out, or give none"
PIXELS_ONLY = {
    "discriminator_feature_model": _FEATURES,
    "discriminator_feature_model_revision": _FEATURES,
    "discriminator_input_size": _NO_IMAGES,
    "discriminator_image_model": _NO_IMAGES,
    "discriminator_image_model_revision": _NO_IMAGES,
    "condition_image_at_last_timestep": _NO_IMAGES,
    "discriminator_text_model": _CAPTION,
    "discriminator_text_model_revision": _CAPTION,
    "reconstruct_real": "the latent discriminator is shown encode(x0) anyway",
    "no_diffaugment": "latents are not augmented",
}
LATENTS_ONLY = ("discriminator_taps", "discriminator_timestep_mean", "discriminator_timestep_std")
MAY_BE_NONE = ("discriminator_image_model", "discriminator_text_model")


def check_discriminator(options: Options) -> None:
    """Refuse flags that the chosen discriminator would ignore, and batches that it cannot learn from.

    A flag with its default value cannot be told from one that was not given, and is let pass.

    Raises:
        OptionError: names the flag, the value it got and the fix.
    """
    own, hardware = options.discriminator, options.hardware
    if options.method.adversarial_weight == 0:
        reason = "--adversarial_weight 0 trains without a discriminator; leave it out"
        _refuse(own.is_latent, "discriminator", own.discriminator, reason)
        _refuse(own.discriminator_steps > 1, "discriminator_steps", own.discriminator_steps, reason)
    defaults = {field.name: field.default for field in dataclasses.fields(DiscriminatorOptions)}
    given = {name: value for name, value in vars(own).items() if value != defaults[name]}
    if own.is_latent:
        for flag, reason in PIXELS_ONLY.items():
            is_off = flag in MAY_BE_NONE and given.get(flag) == NONE
            fix = reason if reason is _CAPTION else f"{reason}; leave it out, or use --discriminator pixel"
            _refuse(flag in given and not is_off, flag, given.get(flag), fix)
    else:
        for flag in LATENTS_ONLY:
            fix = "only the latent discriminator reads it; add --discriminator latent"
            _refuse(flag in given, flag, given.get(flag), fix)
    for flag in ("decode_crop_size", "pretrained_tiny_vae_model"):
        value = getattr(hardware, flag)
        fix = "nothing is decoded: L_distill is off or in latents, and no discriminator judges pixels; leave it out"
        _refuse(value is not None and not decodes(options), flag, value, fix)
    if uses_latent_discriminator(options):
        # accelerate's and torch's launchers set it; the processes themselves come later.
        batch = effective_batch_size(options, int(os.environ.get("WORLD_SIZE", "1")))
        fix = (
            "a hinge loss on one sample per update is reported to collapse; use 2 or more, or "
            "--gradient_accumulation_steps"
        )
        _refuse(batch == 1, "train_batch_size", options.optimization.train_batch_size, fix)


def _refuse(condition: bool, flag: str, value: object, fix: str) -> None:
    if condition:
        shown = list(value) if isinstance(value, tuple) else value
        raise OptionError(f"--{flag} got {shown!r}: {fix}")

"""Warnings about valid but probably unintended arguments of a call, each shown once per process."""

from collections.abc import Mapping
from typing import Any

from diffusers.utils import logging

# A child of the "diffusers" logger, so that `diffusers.logging.set_verbosity_error()` also silences it.
logger = logging.get_logger(f"diffusers.{__name__}")

_NEGATIVE_PROMPTS = ("negative_prompt", "negative_prompt_2", "negative_prompt_3", "negative_prompt_embeds")
_warned: set[str] = set()


def warn_about_call(scheduler: Any, arguments: Mapping[str, Any]) -> None:
    """Warn about guidance, a negative prompt without guidance, and a model that does not seem to be a student.

    Args:
        scheduler: scheduler of the pipeline, of any stock class.
        arguments: arguments of the pipeline's call, by name.
    """
    scale = arguments["guidance_scale"]
    if "_student_timesteps" not in scheduler.config:
        kind = "FlowMapEulerDiscreteScheduler" if "shift" in scheduler.config else "DDPMScheduler"
        _warn_once(
            "student",
            f"The config of {type(scheduler).__name__} has no _student_timesteps, so this model does not seem to be an "
            "ADD student. Models that were not distilled generate blurred images in so few steps. For a LoRA, "
            "load the scheduler that was published with it: "
            f"pipe.scheduler = {kind}.from_pretrained(lora_repo, subfolder='scheduler').",
        )
    if scale > 1:
        _warn_once(
            "guidance",
            f"guidance_scale={scale}: an ADD student is trained without guidance. Guidance usually oversaturates its "
            "images and doubles the cost of the UNet. The default is guidance_scale=0.",
        )
    elif any(arguments.get(name) is not None for name in _NEGATIVE_PROMPTS):
        _warn_once(
            "negative prompt",
            f"The negative prompt is ignored with guidance_scale={scale}. It takes effect with guidance_scale > 1, "
            "which an ADD student is not trained for.",
        )


def _warn_once(kind: str, message: str) -> None:
    """Log `message`, unless one of the same kind has been logged in this process."""
    if kind not in _warned:
        _warned.add(kind)
        logger.warning(message)

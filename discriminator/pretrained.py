"""Loading of frozen pretrained networks from transformers and diffusers, with a check for missing weights."""

from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers import ModelMixin
from torch import nn
from transformers import AutoConfig, CLIPTextConfig
from transformers.utils import logging

Model = TypeVar("Model", bound=nn.Module)
NO_CODE: dict[str, Any] = {"trust_remote_code": False}  # explicit, because transformers otherwise asks at a terminal


class IncompleteModelError(ValueError):
    """The weight files do not contain all weights of the network."""


def move(model: Model, where: torch.device | torch.dtype | str) -> Model:
    """`model.to(where)`, which transformers and diffusers wrap so that a type checker takes it for no method."""
    return cast(Model, cast(nn.Module, model).to(where))


def load_frozen(model_class: type, name_or_path: str, **kwargs: Any) -> Any:
    """Call `model_class.from_pretrained`, and put the model in eval mode without gradients. It never runs remote code.

    Args:
        model_class: model class of transformers or diffusers.
        name_or_path: Hub id or folder.
        kwargs: arguments of `from_pretrained`, such as `subfolder`, `revision`, `variant` and the dtype.

    Returns:
        An instance of `model_class`.

    Raises:
        IncompleteModelError: weights are missing. The libraries would initialize them at random (transformers) or leave
            them without data (diffusers), and a frozen network would keep them.
    """
    verbosity = logging.get_verbosity()
    # transformers lists all unused weights, which are half of a CLIP model if only one tower is loaded. Missing weights
    # are checked below.
    logging.set_verbosity_error()
    try:
        own = {} if issubclass(model_class, ModelMixin) else NO_CODE
        model, info = cast(Any, model_class).from_pretrained(name_or_path, output_loading_info=True, **kwargs, **own)
    finally:
        logging.set_verbosity(verbosity)
    _refuse_missing(model, info["missing_keys"], name_or_path, kwargs.get("subfolder"), kwargs.get("variant"))
    return model.eval().requires_grad_(False)


def _refuse_missing(model: nn.Module, keys, name: str, subfolder: str | None, variant: str | None) -> None:
    # Inputs are never masked, so the mask token is not needed.
    missing = sorted(key for key in keys if "mask_token" not in key)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise IncompleteModelError(
            f"{_weight_file(name, subfolder, variant)} lacks the weights {', '.join(missing[:3])}{more} of "
            f"{type(model).__name__}; download the repo again, or give one that contains the whole network"
        )


def _weight_file(name: str, subfolder: str | None, variant: str | None) -> str:
    """The weight file to name in an error message, or the folder for a Hub repo."""
    folder = Path(name, subfolder or "")
    found = [p for suffix in ("safetensors", "bin") for p in sorted(folder.glob(f"*.{suffix}"))]
    preferred = [p for p in found if (f".{variant}." in p.name) == (variant is not None)]
    return str((preferred or found or [folder])[0])


def clip_text_config(name_or_path: str, **hub: Any) -> CLIPTextConfig:
    """The config of a CLIP's text tower, with the correct size of the projection.

    A CLIP model projects both towers to the `projection_dim` at the top level of its config. Older repos, such as
    `laion/CLIP-ViT-g-14-laion2B-s12B-b42K`, only have it there, but `CLIPTextModelWithProjection` reads the value in
    the text config, which defaults to 512.

    Args:
        name_or_path: Hub id or folder.
        hub: `revision` and `cache_dir`.

    Raises:
        ValueError: the repo contains another kind of model.
    """
    config = AutoConfig.from_pretrained(name_or_path, **hub, **NO_CODE)
    if config.model_type == "clip":
        text = config.text_config
        text.projection_dim = config.projection_dim
        return text
    if not isinstance(config, CLIPTextConfig):
        raise ValueError(f"{name_or_path!r} is of model type {config.model_type!r}, but a CLIP is needed")
    return config

"""Loads frozen pretrained networks of transformers and diffusers, and refuses those with missing weights."""

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
    """The weight files lack weights of the network that the config describes."""


def move(model: Model, where: torch.device | torch.dtype | str) -> Model:
    """`model.to(where)`, which transformers and diffusers wrap so that a type checker takes it for no method."""
    return cast(Model, cast(nn.Module, model).to(where))


def load_frozen(model_class: type, name_or_path: str, **kwargs: Any) -> Any:
    """`model_class.from_pretrained`, in eval mode and without gradients. Code of a repository is never run.

    Args:
        model_class: a model class of transformers or diffusers.
        name_or_path: Hub id or folder.
        kwargs: of `from_pretrained`, such as `subfolder`, `revision`, `variant` and the dtype.

    Returns:
        An instance of `model_class`.

    Raises:
        IncompleteModelError: weights are missing. The libraries initialize those at random (transformers) or leave
            them without data (diffusers), and a frozen network would stay like that for the whole run.
    """
    verbosity = logging.get_verbosity()
    # transformers lists every weight that is left over, which is half of a CLIP when only a tower is wanted; missing
    # weights are checked here.
    logging.set_verbosity_error()
    try:
        own = {} if issubclass(model_class, ModelMixin) else NO_CODE
        model, info = cast(Any, model_class).from_pretrained(name_or_path, output_loading_info=True, **kwargs, **own)
    finally:
        logging.set_verbosity(verbosity)
    _refuse_missing(model, info["missing_keys"], name_or_path, kwargs.get("subfolder"), kwargs.get("variant"))
    return model.eval().requires_grad_(False)


def _refuse_missing(model: nn.Module, keys, name: str, subfolder: str | None, variant: str | None) -> None:
    # Nothing is ever masked here, so a missing mask token does no harm.
    missing = sorted(key for key in keys if "mask_token" not in key)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise IncompleteModelError(
            f"{_weight_file(name, subfolder, variant)} lacks the weights {', '.join(missing[:3])}{more} of "
            f"{type(model).__name__}; download the repository again, or name one that holds the whole network"
        )


def _weight_file(name: str, subfolder: str | None, variant: str | None) -> str:
    """The weight file to name in an error; of a Hub repository the folder in it."""
    folder = Path(name, subfolder or "")
    found = [p for suffix in ("safetensors", "bin") for p in sorted(folder.glob(f"*.{suffix}"))]
    preferred = [p for p in found if (f".{variant}." in p.name) == (variant is not None)]
    return str((preferred or found or [folder])[0])


def clip_text_config(name_or_path: str, **hub: Any) -> CLIPTextConfig:
    """The config of a CLIP's text tower with the projection's size that its weights have.

    A whole CLIP projects both towers to the `projection_dim` at the top level of its config. Older repositories, such
    as `laion/CLIP-ViT-g-14-laion2B-s12B-b42K`, have it only there, and `CLIPTextModelWithProjection` reads the text
    config's own, whose default is 512.

    Args:
        name_or_path: Hub id or folder.
        hub: `revision` and `cache_dir`.

    Raises:
        ValueError: the repository holds another kind of model.
    """
    config = AutoConfig.from_pretrained(name_or_path, **hub, **NO_CODE)
    if config.model_type == "clip":
        text = config.text_config
        text.projection_dim = config.projection_dim
        return text
    if not isinstance(config, CLIPTextConfig):
        raise ValueError(f"{name_or_path!r} is of model type {config.model_type!r}, and a CLIP is needed")
    return config

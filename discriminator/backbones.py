"""Loading of the supported frozen vision transformers, and the input that each of them expects."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, CLIPVisionModel, ImageProcessingMixin, PreTrainedModel
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from discriminator.pretrained import NO_CODE, load_frozen

DEFAULT_INPUT_SIZE = 224  # pixels; all supported networks were trained or evaluated at this size
SELF_SUPERVISED = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")  # transformers' `model_type`
CLIP = ("clip", "clip_vision_model")


class FrozenModule(nn.Module):
    """A module that stays in eval mode, so that a parent's `train()` does not enable dropout or stochastic depth."""

    def __init__(self):
        super().__init__()
        self.eval()

    def train(self, mode: bool = True) -> "FrozenModule":
        """Ignore `mode`."""
        return super().train(False)


def load_vit(
    name_or_path: str,
    supported: tuple[str, ...] = SELF_SUPERVISED + CLIP,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, list[float], list[float]]:
    """Load a frozen vision transformer and the per-channel mean and std (of images in [0, 1]) it was trained with.

    Of a CLIP model, only the vision tower is loaded.

    Raises:
        ValueError: the model's type is not in `supported`, or weights are missing.
    """
    hub = {"revision": revision, "cache_dir": cache_dir}
    config = AutoConfig.from_pretrained(name_or_path, **hub, **NO_CODE)
    model_type = config.model_type
    if model_type not in supported:
        raise ValueError(
            f"{name_or_path!r} is of model type {model_type!r}; supported are {', '.join(supported)}: "
            "give the Hub id or path of a vision transformer of one of these types"
        )
    if model_type in CLIP:
        config = getattr(config, "vision_config", config)
        model = load_frozen(CLIPVisionModel, name_or_path, config=config, dtype=dtype, **hub)
    else:
        # DINO's ViTs were trained without the pooler that transformers' `ViTModel` has by default.
        extra = {"add_pooling_layer": False} if model_type == "vit" else {}
        model = load_frozen(AutoModel, name_or_path, dtype=dtype, **hub, **extra)
    return model, *_image_statistics(name_or_path, model_type, **hub)


def _image_statistics(name_or_path: str, model_type: str, **hub) -> tuple[list[float], list[float]]:
    """Mean and std from the repo's image processor, or else those that the model family was trained with."""
    # Only the processor's dictionary is read, because most processors require torchvision.
    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path, **hub)
    except OSError:  # a repo without a processor, such as a model saved by `save_pretrained`
        processor = {}
    mean, std = (
        (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD) if model_type in CLIP else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return processor.get("image_mean", mean), processor.get("image_std", std)


def resolve_input_size(config, input_size: int | None) -> int:
    """The side of the network's square input: `input_size`, by default 224 or the model's own size if smaller.

    Raises:
        ValueError: `input_size` is not a positive multiple of the patch size.
    """
    if input_size is None:
        input_size = min(DEFAULT_INPUT_SIZE, config.image_size)
    patch = config.patch_size
    if input_size <= 0 or input_size % patch:
        nearest = max(1, round(input_size / patch)) * patch
        raise ValueError(
            f"input_size {input_size} is not a positive multiple of the network's patch size {patch}; "
            f"the nearest valid size is {nearest}"
        )
    return input_size


def position_kwargs(config) -> dict[str, bool]:
    """Forward arguments that make the network interpolate its position embeddings for other input sizes."""
    # DINOv2 always interpolates and DINOv3 uses rotary embeddings; only these two types need the argument.
    return {"interpolate_pos_encoding": True} if config.model_type in ("vit", "clip_vision_model") else {}

"""LoRA-only training (peft): the student is an adapter on its base, and the base without it is the teacher."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import nn

from pipelines import ADDPipeline, ADDXLPipeline
from training.options.models import LoraOptions

# Every linear map and convolution of the UNet that LCM-LoRA adapts too: sampling in one step changes more of the
# network than learning a new subject does, for which attention alone suffices.
DEFAULT_TARGET_MODULES = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip


def add_lora(unet: UNet2DConditionModel, lora: LoraOptions) -> None:
    """Add a trainable adapter in float32; the base stays frozen in its precision. At first it changes nothing (B = 0).

    Raises:
        ValueError: `--lora_target_modules` names nothing that is in the UNet.
    """
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=lora.lora_rank,
            lora_alpha=cast(int, lora.lora_alpha or lora.lora_rank),  # peft only divides it by the rank
            lora_dropout=lora.lora_dropout,
            init_lora_weights=True,
            target_modules=list(lora.lora_target_modules or DEFAULT_TARGET_MODULES),
        )
    )
    cast_training_params(unet, torch.float32)
    if unet.dtype != torch.float32:
        # Autocast casts what the adapter multiplies. peft would cast its input up to float32 first, and keep a copy.
        for module in unet.modules():
            if isinstance(module, BaseTunerLayer):
                cast(Any, module).cast_input_dtype_enabled = False


@contextmanager
def adapter_disabled(unet: UNet2DConditionModel) -> Iterator[UNet2DConditionModel]:
    """`unet` as it was before `add_lora`: the teacher, at no cost of memory.

    This sets the switch that peft's layers read, as their `enable_adapters` does. That method also marks every weight
    as trainable or not, which is not needed here: on SDXL's 788 layers a call took 58 ms with it and 4 without.
    """
    layers = [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield unet
    finally:
        for layer in layers:
            layer._disable_adapters = False


def without_adapter(unet: UNet2DConditionModel) -> Callable:
    """A callable that runs `unet` with its adapter disabled."""

    def call(*args, **kwargs):
        with adapter_disabled(unet):
            return unet(*args, **kwargs)

    return call


def save_lora(
    unet: UNet2DConditionModel, pipeline_class: type[ADDPipeline | ADDXLPipeline], output_dir: str | Path
) -> None:
    """Write `pytorch_lora_weights.safetensors`, rank and alpha in its metadata, as stock pipelines load it."""
    config = unet.peft_config["default"].to_dict()
    layers: dict[str, nn.Module | torch.Tensor] = {**get_peft_model_state_dict(unet)}
    pipeline_class.save_lora_weights(
        output_dir,
        unet_lora_layers=layers,
        unet_lora_adapter_metadata=config,
    )


def fuse_lora(pipeline: DiffusionPipeline, lora_dir: str | Path) -> None:
    """Load the saved adapter into a plain pipeline and merge it into the weights, leaving no adapter behind."""
    pipeline.load_lora_weights(lora_dir, weight_name="pytorch_lora_weights.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()

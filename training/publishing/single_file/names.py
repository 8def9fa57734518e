"""Renaming of a diffusers pipeline's weights to the names of the original checkpoints.

In the original layout, the UNet's blocks are numbered consecutively (`model.diffusion_model.input_blocks.7.1...`), and
the autoencoder's decoder levels from the output inwards (`first_stage_model.decoder.up.3...`). A text encoder has the
names of its original library: those of transformers for OpenAI's CLIP ViT-L, and those of OpenCLIP, which stacks
queries, keys and values in one matrix, for the encoder of SD 2 and the second one of SDXL.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from training.errors import OptionError

Weights = dict[str, Tensor]
UNET, VAE = "model.diffusion_model.", "first_stage_model."

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_VAE_PARTS = {
    "conv_shortcut": "nin_shortcut", "downsamplers.0": "downsample", "upsamplers.0": "upsample",
    "conv_norm_out": "norm_out", "mid_block.attentions.0": "mid.attn_1", "group_norm": "norm", "to_q": "q",
    "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out",  # in folders that an early diffusers wrote
}  # fmt: skip
_OPENCLIP_PARTS = {
    "encoder.layers": "transformer.resblocks", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj", "self_attn": "attn", "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding", "embeddings.position_embedding.weight": "positional_embedding",
    "text_projection.weight": "text_projection",
}  # fmt: skip


def original_weights(parts: Mapping[str, tuple[Mapping[str, Any], Weights]]) -> Weights:
    """Convert a pipeline's weights to the layout of the original checkpoints.

    Args:
        parts: config and weights of "unet", "vae", "text_encoder" and, for SDXL, "text_encoder_2".

    Returns:
        All weights by their original names, with 1x1 convolutions and stacked matrices as in the original layout.

    Raises:
        OptionError: the original layout has no name for a weight.
    """
    weights = _renamed(UNET, parts["unet"][1], unet_namer(parts["unet"][0], parts["unet"][1]))
    vae = {k: v[..., None, None] if _was_convolution(k, v) else v for k, v in parts["vae"][1].items()}
    weights |= _renamed(VAE, vae, vae_namer(parts["vae"][0]))
    config, encoder = parts["text_encoder"]
    if "text_encoder_2" in parts:
        weights |= _renamed("conditioner.embedders.0.transformer.text_model.", encoder, _without_wrapper)
        weights |= _renamed("conditioner.embedders.1.model.", openclip_weights(parts["text_encoder_2"][1]))
    elif config.get("hidden_act", "quick_gelu") == "quick_gelu":  # OpenAI's CLIP; OpenCLIP uses the exact GELU
        weights |= _renamed("cond_stage_model.transformer.text_model.", encoder, _without_wrapper)
    else:
        weights |= _renamed("cond_stage_model.model.", openclip_weights(encoder))
    return weights


def unet_namer(config: Mapping[str, Any], names: Iterable[str]) -> Callable[[str], str | None]:
    """Make a function that renames a UNet's weights. In the original layout, each layer is a block of its own.

    Returns:
        A function from the diffusers name to the original one, or None if there is none.

    Raises:
        OptionError: the blocks have different numbers of layers, which the original numbering does not support.
    """
    layers = config["layers_per_block"]
    if not isinstance(layers, int):
        raise OptionError(f"layers_per_block={layers} of the UNet must be a single number to export a single file.")
    with_attention = {name.split(".attentions")[0] for name in names if ".attentions" in name}

    def layer(kind: str, rest: str) -> str | None:
        if kind == "attentions":
            return rest
        part, _, end = rest.rpartition(".")
        return f"{_RESNET[part]}.{end}" if part in _RESNET else None

    def rename(name: str) -> str | None:
        head, _, end = name.rpartition(".")
        if head in _UNET_ENDS:
            return f"{_UNET_ENDS[head]}.{end}"
        if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
            kind, j, rest = found.groups()
            place, new = 2 * int(j) + (kind == "attentions"), layer(kind, rest)
            return new and f"middle_block.{place}.{new}"
        found = re.fullmatch(r"((down|up)_blocks\.(\d+))\.(resnets|attentions|\w+samplers)\.(\d+)\.(.+)", name)
        if not found:
            return None
        block, way, i, kind, j, rest = found.groups()
        first = int(i) * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":  # in the block of the last layer, after its attention
            return f"output_blocks.{first + layers}.{1 + (block in with_attention)}.{rest}"
        place = f"input_blocks.{1 + first + int(j)}" if way == "down" else f"output_blocks.{first + int(j)}"
        new = layer(kind, rest)
        return new and f"{place}.{int(kind == 'attentions')}.{new}"

    return rename


def vae_namer(config: Mapping[str, Any]) -> Callable[[str], str]:
    """Make a function that renames an autoencoder's weights. Decoder levels are numbered from the output inwards."""
    last = len(config["block_out_channels"]) - 1

    def rename(name: str) -> str:
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name).replace("down_blocks", "down")
        name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{last - int(found[1])}", name).replace("resnets", "block")
        name = re.sub(r"mid_block\.block\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        return _replaced(name, _VAE_PARTS)

    return rename


def openclip_weights(weights: Weights) -> Weights:
    """Convert a CLIP text encoder of transformers to OpenCLIP's names, with queries, keys and values stacked.

    OpenCLIP multiplies by the projection matrix from the right, so it is transposed. The last of SD 2's 24 layers is
    not used and therefore part of neither the pipeline nor the file.
    """
    stacked: dict[str, list[Tensor]] = {}
    named: Weights = {}
    for name in sorted(weights):  # so that k, q, v come in this order
        new = _replaced(_without_wrapper(name), _OPENCLIP_PARTS)
        if found := re.fullmatch(r"(.+\.attn)\.([kqv])_proj\.(weight|bias)", new):
            stacked.setdefault(f"{found[1]}.in_proj_{found[3]}", []).append(weights[name])
        elif not new.endswith("position_ids"):  # 0, 1, 2, ..., saved by early versions of transformers
            named[new] = weights[name].T if new == "text_projection" else weights[name]
    return named | {name: torch.cat([q, k, v]) for name, (k, q, v) in stacked.items()}


def _renamed(prefix: str, weights: Weights, rename: Callable[[str], str | None] = str) -> Weights:
    names = {name: rename(name) for name in weights}
    if unknown := [name for name, new in names.items() if new is None]:
        raise OptionError(
            f"{unknown[0]} and {len(unknown) - 1} more weights have no name in the single-file layout, which is that "
            "of Stable Diffusion 1, 2 and SDXL. Load the folder with diffusers instead."
        )
    return {f"{prefix}{new}": weights[name] for name, new in names.items()}


def _replaced(name: str, parts: Mapping[str, str]) -> str:
    """`name` with dot-separated parts of it replaced."""
    for old, new in parts.items():
        name = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", new, name)
    return name


def _without_wrapper(name: str) -> str:
    return name.removeprefix("text_model.")


def _was_convolution(name: str, tensor: Tensor) -> bool:
    """Whether a linear layer of the autoencoder is a 1x1 convolution in the originals."""
    return ".attentions." in name and name.endswith("weight") and tensor.ndim == 2

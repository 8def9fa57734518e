"""The teacher's two layouts, Stable Diffusion's and SDXL's: its components, and what its UNet is told of a caption."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from examples.tiny.models import make_sdxl_unet, make_unet

CHUNK = 256  # captions encoded at a time


def assemble(
    clips: Sequence[Path], vae: AutoencoderKL, scheduler: SchedulerMixin, **unet_config: Any
) -> DiffusionPipeline:
    """A stock pipeline around an untrained UNet: of Stable Diffusion for one CLIP folder, of SDXL for two.

    `unet_config` goes to `make_unet` or `make_sdxl_unet`.
    """
    tokenizers = [CLIPTokenizer.from_pretrained(clip) for clip in clips]
    classes = (CLIPTextModel, CLIPTextModelWithProjection)
    encoders = [cls.from_pretrained(clip).eval().requires_grad_(False) for cls, clip in zip(classes, clips)]
    widths = [encoder.config.hidden_size for encoder in encoders]
    common: dict[str, Any] = {
        "vae": vae,
        "text_encoder": encoders[0],
        "tokenizer": tokenizers[0],
        "scheduler": scheduler,
    }
    if len(clips) == 1:
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionPipeline(unet=make_unet(cross_attention_dim=widths[0], **unet_config), **common, **none)
    common |= {"text_encoder_2": encoders[1], "tokenizer_2": tokenizers[1]}
    return StableDiffusionXLPipeline(unet=make_sdxl_unet(text_widths=(widths[0], widths[1]), **unet_config), **common)


@torch.no_grad()
def encode_captions(pipeline: DiffusionPipeline, captions: Sequence[str]) -> dict[str, Any]:
    """The UNet's arguments for no caption (row 0) and for each of K `captions`, as the pipeline itself encodes them.

    Returns:
        `encoder_hidden_states (K + 1, L, width)` and for SDXL `added_cond_kwargs`: `text_embeds (K + 1, width)` and
        `time_ids (K + 1, 6)`, which say that nothing was scaled or cropped. No caption is the empty one's embedding
        in Stable Diffusion and all zeros in SDXL.
    """
    parts = []
    for start in range(0, len(captions), CHUNK):
        chunk = list(captions[start : start + CHUNK])
        encoded = pipeline.encode_prompt(chunk, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
        # What there is for the captions, then for none, in turn: hidden states, then SDXL's pooled embeddings.
        with_caption, without = encoded[::2], encoded[1::2]
        if start == 0:
            parts.append([nothing[:1] for nothing in without])
        parts.append(with_caption)
    hidden, *pooled = (torch.cat(chunks) for chunks in zip(*parts))
    if not pooled:
        return {"encoder_hidden_states": hidden}
    size = pipeline.vae.config.sample_size
    sizes = torch.tensor([[size, size, 0, 0, size, size]], dtype=hidden.dtype)
    added = {"text_embeds": pooled[0], "time_ids": sizes.expand(len(hidden), -1)}
    return {"encoder_hidden_states": hidden, "added_cond_kwargs": added}


def pick(conditions: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """Those rows of every tensor in `conditions`."""
    return {k: pick(v, rows) if isinstance(v, dict) else v[rows] for k, v in conditions.items()}

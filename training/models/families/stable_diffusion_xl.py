"""SDXL: two text encoders, pooled embeddings, size and crop conditioning, and an autoencoder that overflows in fp16."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from distillation.student import Condition
from pipelines import ADDXLPipeline
from training.models.families.base import Family

logger = logging.getLogger(__name__)


class StableDiffusionXL(Family):
    """An SDXL base repo (2307.01952)."""

    pipeline_class = ADDXLPipeline
    stock_class = "StableDiffusionXLPipeline"
    script = "train_add_sdxl.py"
    text_encoders = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}  # noqa: RUF012
    tokenizers = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer}  # noqa: RUF012
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer

    def vae_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """`dtype`, or bf16 or fp32 if `dtype` is fp16 and the autoencoder overflows in fp16 according to its config.

        The stock SDXL autoencoder overflows (`force_upcast`); the "fp16-fix" version does not.
        """
        if dtype != torch.float16 or not self.vae_config.get("force_upcast", True):
            return dtype
        # bf16 has the range of fp32 and takes half the memory, but not every GPU supports it.
        has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported()
        safe = torch.bfloat16 if has_bf16 else torch.float32
        logger.info(
            "The autoencoder of %s overflows in fp16 (force_upcast in its config) and is run in %s",
            self.vae_name or self.name,
            str(safe).removeprefix("torch."),
        )
        return safe

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """`encoder_hidden_states (B, L, D1 + D2)`, the concatenated penultimate layers, and pooled `text_embeds (B, P)`
        of the second encoder. Empty captions give zeros if `force_zeros_for_empty_prompt` is set in the repo."""
        hidden = []
        for tokenizer, encoder in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)):
            output = encoder(self.tokenize(tokenizer, captions, encoder.device), output_hidden_states=True)
            hidden.append(output.hidden_states[-2].float())
        embedded = {"encoder_hidden_states": torch.cat(hidden, dim=-1), "text_embeds": output.text_embeds.float()}
        if self.index.get("force_zeros_for_empty_prompt", True):
            is_empty = torch.tensor([caption == "" for caption in captions], device=hidden[0].device)
            embedded = {
                name: value.masked_fill(is_empty.reshape(-1, *([1] * (value.ndim - 1))), 0)
                for name, value in embedded.items()
            }
        return embedded

    @torch.no_grad()
    def pooled(self, captions: Sequence[str]) -> Tensor:
        """The projected caption of the second encoder, which the UNet is told, too."""
        ids = self.tokenize(self.tokenizer_2, captions, self.text_encoder_2.device)
        return self.text_encoder_2(ids).text_embeds.float()

    @property
    def pooled_dim(self) -> int:
        """See `Family`."""
        return self.text_encoder_2.config.projection_dim

    def condition(self, embedded: dict[str, Tensor], sizes: dict[str, Tensor]) -> Condition:
        """See `Family`; adds `time_ids (B, 6)`: original size, crop corner and target size."""
        hidden, pooled = embedded["encoder_hidden_states"], embedded["text_embeds"]
        time_ids = torch.cat([sizes[name] for name in ("original_size", "crop_top_left", "target_size")], dim=1)
        added = {"text_embeds": pooled, "time_ids": time_ids.float()}
        return {"encoder_hidden_states": hidden, "added_cond_kwargs": added}

    def components(self, unet: ModelMixin, scheduler: SchedulerMixin) -> dict[str, Any]:
        """See `Family`; without the optional watermark."""
        return {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "text_encoder_2": self.text_encoder_2,
            "tokenizer": self.tokenizer,
            "tokenizer_2": self.tokenizer_2,
            "unet": unet,
            "scheduler": scheduler,
            "force_zeros_for_empty_prompt": self.index.get("force_zeros_for_empty_prompt", True),
            "add_watermarker": False,
        }

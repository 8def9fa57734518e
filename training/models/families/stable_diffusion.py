"""Stable Diffusion 1.x and 2.x: one text encoder, no size conditioning."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from distillation.student import Condition
from pipelines import ADDPipeline
from training.models.families.base import Family


class StableDiffusion(Family):
    """A Stable Diffusion repo."""

    pipeline_class = ADDPipeline
    stock_class = "StableDiffusionPipeline"
    script = "train_add.py"
    text_encoders = {"text_encoder": CLIPTextModel}  # noqa: RUF012 (read only)
    tokenizers = {"tokenizer": CLIPTokenizer}  # noqa: RUF012
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """`encoder_hidden_states (B, L, D)`: the last hidden states, after the final LayerNorm."""
        ids = self.tokenize(self.tokenizer, captions, self.text_encoder.device)
        return {"encoder_hidden_states": self.text_encoder(ids)[0].float()}

    @torch.no_grad()
    def pooled(self, captions: Sequence[str]) -> Tensor:
        """The last hidden state at the end token, after the final LayerNorm."""
        ids = self.tokenize(self.tokenizer, captions, self.text_encoder.device)
        return self.text_encoder(ids).pooler_output.float()

    @property
    def pooled_dim(self) -> int:
        """See `Family`."""
        return self.text_encoder.config.hidden_size

    def condition(self, embedded: dict[str, Tensor], sizes: dict[str, Tensor]) -> Condition:
        """See `Family`; Stable Diffusion does not use `sizes`."""
        return dict(embedded)

    def components(self, unet: ModelMixin, scheduler: SchedulerMixin) -> dict[str, Any]:
        """See `Family`; there is no safety checker, because a student's repo does not contain one."""
        return {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "unet": unet,
            "scheduler": scheduler,
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }

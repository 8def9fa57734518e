"""Stable Diffusion 1.x and 2.x: one text encoder, no size conditioning."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
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
    text_encoders = {"text_encoder": CLIPTextModel}  # noqa: RUF012 (declared a ClassVar by the base)
    tokenizers = ("tokenizer",)
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """`encoder_hidden_states (B, L, D)`: the last hidden states, after the final LayerNorm."""
        ids = self.tokenize(self.tokenizer, captions, self.text_encoder.device)
        return {"encoder_hidden_states": self.text_encoder(ids)[0].float()}

    def condition(self, embedded: dict[str, Tensor], sizes: dict[str, Tensor]) -> Condition:
        """Stable Diffusion knows nothing of `sizes`."""
        return dict(embedded)

    def components(self, unet: UNet2DConditionModel, scheduler: SchedulerMixin) -> dict[str, Any]:
        """See `Family`; without a safety checker: what it would look for is not in a student's repo."""
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

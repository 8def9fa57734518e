#!/usr/bin/env python
"""Distil Stable Diffusion 1.x or 2.x into a student that samples in 1 to 4 steps (ADD, 2311.17042).

Here stands what is Stable Diffusion's own; the loop and its flags are in `training/`.
"""

import argparse
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, DDPMScheduler, SchedulerMixin, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from distillation.student import Condition
from pipelines import ADDPipeline
from training.arguments import make_parser, run_command
from training.loop import train


class StableDiffusion:
    """A Stable Diffusion repo: its scheduler at once, its weights on `load`.

    Attributes:
        scheduler: for its betas and prediction type only.
        vae, text_encoder, unet: frozen, after `load`.
    """

    def __init__(
        self, name: str, revision: str | None = None, variant: str | None = None, cache_dir: str | None = None
    ):
        self.name = name
        self.where = {"revision": revision, "cache_dir": cache_dir}
        self.variant = variant
        self.scheduler = DDPMScheduler.from_pretrained(name, subfolder="scheduler", **self.where)

    def load(self, dtype: torch.dtype, device: torch.device) -> None:
        """Load tokenizer, text encoder, autoencoder and UNet, frozen, in `dtype` on `device`."""
        weights = {**self.where, "variant": self.variant}
        self.tokenizer = CLIPTokenizer.from_pretrained(self.name, subfolder="tokenizer", **self.where)
        self.text_encoder = CLIPTextModel.from_pretrained(self.name, subfolder="text_encoder", dtype=dtype, **weights)
        self.vae = AutoencoderKL.from_pretrained(self.name, subfolder="vae", torch_dtype=dtype, **weights)
        self.unet = UNet2DConditionModel.from_pretrained(self.name, subfolder="unet", torch_dtype=dtype, **weights)
        for network in (self.text_encoder, self.vae, self.unet):
            network.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def condition(self, captions: Sequence[str], sizes: dict[str, Tensor]) -> Condition:
        """Captions to `encoder_hidden_states` `(B, L, D)`. Stable Diffusion knows nothing of `sizes`."""
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.text_encoder.device)
        return {"encoder_hidden_states": self.text_encoder(tokens)[0]}

    def pipeline(self, unet: UNet2DConditionModel, scheduler: SchedulerMixin) -> ADDPipeline:
        """The few-step pipeline around `unet`; the other components are shared, not copied."""
        return ADDPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def distil(args: argparse.Namespace) -> None:
    """Train as the flags say."""
    train(StableDiffusion(args.pretrained_teacher_model, args.revision, args.variant, args.cache_dir), args)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run_command(make_parser(__doc__.split("\n")[0]), argv, distil)


if __name__ == "__main__":
    main()

"""Architectures of the published models, built from their configs with random weights and without downloads.

Under `torch.device("meta")`, the networks take no memory but can be counted.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, Dinov2Config, Dinov2Model

from distillation.student import Condition

TEXT_LENGTH = 77


@dataclass(frozen=True)
class Architecture:
    """One base model.

    Attributes:
        layout: "sd" or "sdxl".
        unet: arguments of `UNet2DConditionModel`.
        text_encoders: arguments of `CLIPTextConfig` for each text encoder.
        scaling_factor: scaling factor of the latents.
        prediction_type: prediction type of the UNet.
    """

    layout: str
    unet: dict[str, Any]
    text_encoders: tuple[dict[str, Any], ...]
    scaling_factor: float = 0.18215
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"

    def make_unet(self) -> UNet2DConditionModel:
        """Make the UNet."""
        return UNet2DConditionModel(**self.unet)

    def unet_parameters(self) -> int:
        """Number of parameters of the UNet."""
        with torch.device("meta"):
            return sum(p.numel() for p in self.make_unet().parameters())

    def make_vae(self) -> AutoencoderKL:
        """Make Stable Diffusion's autoencoder with a factor of 8; that of SDXL has the same architecture."""
        return AutoencoderKL(**VAE, scaling_factor=self.scaling_factor)

    def make_text_encoders(self, **special_tokens: Any) -> list[CLIPTextModel | CLIPTextModelWithProjection]:
        """Make the text encoders. If there are two, the second one has a projection."""
        kinds = (CLIPTextModel, CLIPTextModelWithProjection)
        return [kind(CLIPTextConfig(**c, **special_tokens)) for kind, c in zip(kinds, self.text_encoders)]

    def empty_condition(self, batch: int, dtype: torch.dtype = torch.float32) -> Condition:
        """Uninitialized conditions of the UNet with the correct shapes."""
        hidden = torch.empty(batch, TEXT_LENGTH, self.unet["cross_attention_dim"], dtype=dtype)
        if self.layout == "sd":
            return {"encoder_hidden_states": hidden}
        pooled = torch.empty(batch, self.text_encoders[-1]["projection_dim"], dtype=dtype)
        added = {"text_embeds": pooled, "time_ids": torch.empty(batch, 6)}
        return {"encoder_hidden_states": hidden, "added_cond_kwargs": added}


VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
CLIP_L = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768,
}  # fmt: skip
OPENCLIP_H = {
    "vocab_size": 49408, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
    "num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 512,
}  # fmt: skip
OPENCLIP_BIGG = {
    "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
# The encoder of c_text (CLIP ViT-g-14 in the paper), and the two DINOv2 networks for F and c_img.
OPENCLIP_G = {**OPENCLIP_H, "num_hidden_layers": 24, "projection_dim": 1024}
DINOV2_S = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
DINOV2_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}

ARCHITECTURES = {
    "sd15": Architecture("sd", {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}, (CLIP_L,)),
    "sd21": Architecture(
        "sd",
        {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        (OPENCLIP_H,),
        prediction_type="v_prediction",
    ),
    "sdxl": Architecture(
        "sdxl",
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 2,
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        (CLIP_L, OPENCLIP_BIGG),
        scaling_factor=0.13025,
    ),
}


def make_dinov2(config: dict[str, Any]) -> Dinov2Model:
    """Make a DINOv2 with patches of 14 pixels and an image size of 518."""
    return Dinov2Model(Dinov2Config(**config, patch_size=14, image_size=518, mlp_ratio=4))


def make_openclip_g(**special_tokens: Any) -> CLIPTextModelWithProjection:
    """Make the text encoder of CLIP ViT-g-14, for c_text."""
    return CLIPTextModelWithProjection(CLIPTextConfig(**OPENCLIP_G, **special_tokens))


def make_tiny_vae() -> AutoencoderTiny:
    """Make a TAESD, which has the default arguments of `AutoencoderTiny`."""
    return AutoencoderTiny()


@dataclass(frozen=True)
class Recipe:
    """A training recipe, as flags of the training scripts."""

    title: str
    flags: tuple[str, ...] = field(default_factory=tuple)


MEMORY = ("--gradient_checkpointing", "--use_8bit_adam")
LATENT = ("--distillation_space", "latent")
CROP = ("--decode_crop_size", "224")
LADD = ("--discriminator", "latent")
LORA = ("--use_lora", "--lora_rank", "64")
RECIPES = {
    "A": Recipe("pixel distillation, both decoded, D at 518", ("--discriminator_input_size", "518")),
    "B": Recipe("latent distillation, full decode, D at 224", LATENT),
    "C": Recipe("latent distillation, 224-px crop decoded", (*LATENT, *CROP)),
    "D": Recipe("latent distillation, TAESD", (*LATENT, "--pretrained_tiny_vae_model", "{tiny_vae}")),
    "C+LoRA": Recipe("C with LoRA of rank 64", (*LATENT, *CROP, *LORA)),
    "L": Recipe("latent discriminator and latent distillation", LADD),
    "L0": Recipe("latent discriminator alone", (*LADD, "--distillation_weight", "0")),
    "L+LoRA": Recipe("L with LoRA of rank 64", (*LADD, *LORA)),
    "L0+LoRA": Recipe("L0 with LoRA of rank 64", (*LADD, "--distillation_weight", "0", *LORA)),
}

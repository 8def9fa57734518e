"""The two families whose pipelines are tested alike: their classes, small random components, and conditions by hand."""

from dataclasses import dataclass
from types import ModuleType

import diffusers
import torch
from diffusers import DiffusionPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import pipelines.pipeline_add
import pipelines.pipeline_add_sdxl
from examples.tiny.models import make_clip, make_sdxl_unet, make_tokenizer, make_unet, make_vae

CAPTIONS = ["a handwritten seven", "an eight, small and slanted"]
WIDTHS = (32, 64)  # of the text encoders


@dataclass(frozen=True)
class Family:
    """`stock` maps "text", "image" and "inpaint" to the stock classes; `options` are arguments to construct them."""

    ours: type[DiffusionPipeline]
    stock: dict[str, type[DiffusionPipeline]]
    module: ModuleType
    options: dict
    text_encoders: tuple[str, ...]
    embed_width: int
    scaling_factor: float

    @property
    def stock_name(self) -> str:
        """What `model_index.json` names."""
        return self.stock["text"].__name__

    def components(self) -> dict:
        """Every component but the scheduler; images are 32x32, latents (B, 4, 8, 8)."""
        torch.manual_seed(0)
        models = {"vae": make_vae((8, 8, 8)), **self.text_models()}
        models["vae"].register_to_config(scaling_factor=self.scaling_factor)
        for model in models.values():
            model.eval().requires_grad_(False)
        return models | self.tokenizers() | self.empty()


class StableDiffusion(Family):
    """One encoder, whose last hidden state conditions."""

    def text_models(self) -> dict:
        text_encoder = CLIPTextModel(make_clip(make_tokenizer(CAPTIONS), width=32).config.text_config)
        return {"text_encoder": text_encoder, "unet": make_unet((16, 32), cross_attention_dim=32)}

    def tokenizers(self) -> dict:
        # A tokenizer that has been used remembers its padding, and would be saved with it.
        return {"tokenizer": make_tokenizer(CAPTIONS)}

    def empty(self) -> dict:
        return {"safety_checker": None, "feature_extractor": None}

    def embeds(self, batch: int) -> dict:
        return {"prompt_embeds": torch.randn(batch, 24, 32, generator=torch.Generator().manual_seed(3))}

    def condition(self, pipe, prompt: str) -> dict:
        """The UNet's arguments for `prompt`, written out."""
        tokens = pipe.tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
        return {"encoder_hidden_states": pipe.text_encoder(tokens).last_hidden_state}


class StableDiffusionXL(Family):
    """Two encoders' last hidden states but one, side by side; the second's pooled text; sizes and crop."""

    def text_models(self) -> dict:
        configs = [make_clip(make_tokenizer(CAPTIONS), width=width).config.text_config for width in WIDTHS]
        return {
            "text_encoder": CLIPTextModel(configs[0]),
            "text_encoder_2": CLIPTextModelWithProjection(configs[1]),
            "unet": make_sdxl_unet((16, 32), WIDTHS),
        }

    def tokenizers(self) -> dict:
        return {"tokenizer": make_tokenizer(CAPTIONS), "tokenizer_2": make_tokenizer(CAPTIONS, pad_token="!")}

    def empty(self) -> dict:
        return {}

    def embeds(self, batch: int) -> dict:
        generator = torch.Generator().manual_seed(3)
        return {
            "prompt_embeds": torch.randn(batch, 24, sum(WIDTHS), generator=generator),
            "pooled_prompt_embeds": torch.randn(batch, WIDTHS[1], generator=generator),
        }

    def condition(self, pipe, prompt: str) -> dict:
        """The UNet's arguments for `prompt` at 32x32 without a crop, written out."""
        hidden = []
        for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
            tokens = tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
            output = encoder(tokens, output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        added = {"text_embeds": output.text_embeds, "time_ids": torch.tensor([[32, 32, 0, 0, 32, 32.0]])}
        return {"encoder_hidden_states": torch.cat(hidden, dim=-1), "added_cond_kwargs": added}


def stock_classes(prefix: str) -> dict[str, type]:
    kinds = {"text": "", "image": "Img2Img", "inpaint": "Inpaint"}
    return {kind: getattr(diffusers, f"{prefix}{name}Pipeline") for kind, name in kinds.items()}


SD = StableDiffusion(
    ours=pipelines.ADDPipeline,
    stock=stock_classes("StableDiffusion"),
    module=pipelines.pipeline_add,
    options={"requires_safety_checker": False},
    text_encoders=("text_encoder",),
    embed_width=WIDTHS[0],
    scaling_factor=0.18215,
)
SDXL = StableDiffusionXL(
    ours=pipelines.ADDXLPipeline,
    stock=stock_classes("StableDiffusionXL"),
    module=pipelines.pipeline_add_sdxl,
    options={},
    text_encoders=("text_encoder", "text_encoder_2"),
    embed_width=sum(WIDTHS),
    scaling_factor=0.13025,
)
FAMILIES = {"sd": SD, "sdxl": SDXL}

"""The discriminator's conditions: embeddings of the caption and of the real image (ADD, section 3.2)."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from discriminator.backbones import (
    SELF_SUPERVISED,
    FrozenModule,
    load_vit,
    position_kwargs,
    resolve_input_size,
)
from discriminator.preprocess import normalize, resize
from discriminator.pretrained import NO_CODE, clip_text_config, load_frozen


class TextCondition(FrozenModule):
    """c_text: the projected text embedding of a frozen CLIP. The paper uses ViT-g-14 (LAION-2B).

    Attributes:
        dim: dimension of the embedding.
    """

    def __init__(self, model: CLIPTextModelWithProjection, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.dim = cast(int, model.config.projection_dim)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        revision: str | None = None,
        cache_dir: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "TextCondition":
        """Load text tower, projection and tokenizer of a CLIP in transformers' layout, such as
        `laion/CLIP-ViT-g-14-laion2B-s12B-b42K`.

        Raises:
            ValueError: the repo contains another kind of model, or lacks weights such as the projection (which Stable
                Diffusion's encoders do not have).
        """
        hub = {"revision": revision, "cache_dir": cache_dir}
        config = clip_text_config(name_or_path, **hub)
        model = load_frozen(CLIPTextModelWithProjection, name_or_path, config=config, dtype=dtype, **hub)
        return cls(model, AutoTokenizer.from_pretrained(name_or_path, **hub, **NO_CODE))

    @torch.no_grad()
    def forward(self, captions: list[str]) -> Tensor:
        """Embeddings `(B, dim)` of B captions, float32, each of unit length. Long captions are truncated."""
        # Padding to the longest caption is enough: attention is causal, so the padding does not affect the end token.
        tokens = self.tokenizer(
            captions,
            padding=True,
            truncation=True,
            max_length=self.model.config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.model.device)
        embeddings = self.model(tokens.input_ids, attention_mask=tokens.attention_mask).text_embeds
        return F.normalize(embeddings.float(), dim=-1)


class ImageCondition(FrozenModule):
    """c_img: the class token, after the final LayerNorm, of a frozen self-supervised ViT. The paper uses DINOv2 ViT-L.

    Attributes:
        dim: dimension of the embedding.
        input_size: height and width that images are resized to, in pixels.
    """

    mean: Tensor  # buffers, (3,)
    std: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        mean: list[float] = IMAGENET_DEFAULT_MEAN,
        std: list[float] = IMAGENET_DEFAULT_STD,
    ):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.dim: int = model.config.hidden_size
        self.input_size = resolve_input_size(model.config, None)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        revision: str | None = None,
        cache_dir: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "ImageCondition":
        """Load a DINOv2 (with or without registers), DINOv3 or DINOv1 from the Hub or a directory.

        Raises:
            ValueError: the model type is not supported, or weights are missing.
        """
        return cls(*load_vit(name_or_path, SELF_SUPERVISED, revision=revision, cache_dir=cache_dir, dtype=dtype))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Embeddings `(B, dim)`, float32, each of unit length, of `images` (B, 3, H, W) in [-1, 1]."""
        pixels = normalize(resize((images.float() + 1) / 2, self.input_size), self.mean, self.std)
        class_token = self.model(pixels, **position_kwargs(self.model.config)).last_hidden_state[:, 0]
        return F.normalize(class_token.float(), dim=-1)


def projection_condition(text: Tensor | None, image: Tensor | None, image_known: Tensor | None = None) -> Tensor | None:
    """The condition c of the heads: the concatenation of c_text and c_img, either of which may be disabled.

    Args:
        text: c_text `(B, D_text)`, unit vectors, or None.
        image: c_img `(B, D_image)`, unit vectors of the real images, or None.
        image_known: `(B,)` bool, or None for all True. Where False, c_img is set to zero: at s = 999 the student's
            input is pure noise and contains nothing of x0, so conditioning on x0 would push the student to the mean.

    Returns:
        `(B, D_text + D_image)`, or None if both are disabled.
    """
    if image is not None and image_known is not None:
        image = image.masked_fill(~image_known[:, None], 0.0)
    parts = [part for part in (text, image) if part is not None]
    return torch.cat(parts, dim=-1) if parts else None

"""Embeddings of images and captions by frozen encoders, computed for each batch. `cache.py` reads them from disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from discriminator import ImageCondition, TextCondition
from distillation.latents import LatentSpace
from training.models.families import Family


class Embeddings(Protocol):
    """Everything of a batch that the trained networks do not change."""

    @property
    def condition_dim(self) -> int:
        """D of c = [c_text, c_img], 0 where both are off."""
        ...

    def latents(self, x0: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(B, C, h, w)` of the latents of images `x0` with sample ids `ids (B,)`."""
        ...

    def captions(self, family: Family, captions: Sequence[str]) -> dict[str, Tensor]:
        """What `family.embed` makes of B captions."""
        ...

    def c_text(self, captions: Sequence[str]) -> Tensor | None:
        """`(B, D)` unit vectors, or None where that condition is off."""
        ...

    def c_img(self, x0: Tensor, ids: Tensor) -> Tensor | None:
        """`(B, D)` unit vectors, or None where that condition is off."""
        ...


@dataclass(frozen=True)
class OnlineEmbeddings:
    """`Embeddings` by running the encoders.

    Attributes:
        text, image: encoders of c_text and c_img, or None where that condition is off.
    """

    space: LatentSpace
    text: TextCondition | None
    image: ImageCondition | None

    def latents(self, x0: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """`ids` are for the cache."""
        return self.space.moments(x0)

    @property
    def condition_dim(self) -> int:
        """See `Embeddings`."""
        return sum(encoder.dim for encoder in (self.text, self.image) if encoder is not None)

    @torch.no_grad()
    def captions(self, family: Family, captions: Sequence[str]) -> dict[str, Tensor]:
        """Each different caption is encoded once."""
        unique = list(dict.fromkeys(captions))
        places = torch.tensor([unique.index(caption) for caption in captions])
        return {name: value[places.to(value.device)] for name, value in family.embed(unique).items()}

    def c_text(self, captions: Sequence[str]) -> Tensor | None:
        """See `Embeddings`."""
        return None if self.text is None else self.text(list(captions))

    def c_img(self, x0: Tensor, ids: Tensor) -> Tensor | None:
        """See `Embeddings`."""
        return None if self.image is None else self.image(x0)

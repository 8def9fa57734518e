"""Latents and embeddings of images and captions, computed by frozen encoders. `cache.py` reads them from disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from discriminator import ImageCondition
from distillation.latents import LatentSpace
from training.models.families import Family


class Embeddings(Protocol):
    """Interface of the latents and embeddings of a batch, which do not depend on the trained networks."""

    @property
    def condition_dim(self) -> int:
        """Dimension D of c = [c_text, c_img], 0 if both are disabled."""
        ...

    def latents(self, x0: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(B, C, h, w)` of the latents of images `x0` with sample ids `ids (B,)`."""
        ...

    def captions(self, family: Family, captions: Sequence[str]) -> dict[str, Tensor]:
        """The result of `family.embed` for B captions."""
        ...

    def c_text(self, captions: Sequence[str]) -> Tensor | None:
        """Unit vectors c_text `(B, D)`, or None if this condition is disabled."""
        ...

    def c_img(self, x0: Tensor, ids: Tensor) -> Tensor | None:
        """Unit vectors c_img `(B, D)`, or None if this condition is disabled."""
        ...


@dataclass(frozen=True)
class OnlineEmbeddings:
    """`Embeddings` that are computed by the encoders.

    Attributes:
        space: the student's latent space.
        text, image: encoders of c_text and c_img; None if the condition is disabled.
    """

    space: LatentSpace
    text: Callable[[list[str]], Tensor] | None  # with `dim`
    image: ImageCondition | None

    def latents(self, x0: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """See `Embeddings`; `ids` are not used."""
        return self.space.moments(x0)

    @property
    def condition_dim(self) -> int:
        """See `Embeddings`."""
        return sum(encoder.dim for encoder in (self.text, self.image) if encoder is not None)

    @torch.no_grad()
    def captions(self, family: Family, captions: Sequence[str]) -> dict[str, Tensor]:
        """See `Embeddings`; each distinct caption is encoded once."""
        unique = list(dict.fromkeys(captions))
        places = torch.tensor([unique.index(caption) for caption in captions])
        return {name: value[places.to(value.device)] for name, value in family.embed(unique).items()}

    def c_text(self, captions: Sequence[str]) -> Tensor | None:
        """See `Embeddings`."""
        return None if self.text is None else self.text(list(captions))

    def c_img(self, x0: Tensor, ids: Tensor) -> Tensor | None:
        """See `Embeddings`."""
        return None if self.image is None else self.image(x0)

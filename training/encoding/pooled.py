"""c_text of the latent discriminator: the teacher's own pooled caption, so that no further text encoder is needed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from discriminator import ImageCondition, TextCondition
from training.models.families import Family
from training.models.networks import load_conditions
from training.options.derived import uses_latent_discriminator
from training.options.method import NONE
from training.options.options import Options


@dataclass(frozen=True)
class PooledCaption:
    """Captions to unit vectors by the text encoder of `family`, in `TextCondition`'s place."""

    family: Family

    @property
    def dim(self) -> int:
        """Entries of a vector."""
        return self.family.pooled_dim

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """`(B, dim)` float32 of B captions, each of unit length."""
        return F.normalize(self.family.pooled(captions), dim=-1)


def make_conditions(
    options: Options, accelerator: Accelerator, teacher: Family
) -> tuple[TextCondition | PooledCaption | None, ImageCondition | None]:
    """The encoders of c_text and c_img, None where a condition is off.

    Raises:
        OptionError: an encoder cannot be loaded, or is of another kind.
    """
    if not uses_latent_discriminator(options):
        return load_conditions(options, accelerator)
    return None if options.discriminator.discriminator_text_model == NONE else PooledCaption(teacher), None

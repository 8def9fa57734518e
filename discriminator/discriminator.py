"""The discriminator as a whole: augmentation, frozen features, trainable heads (ADD, section 3.2)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from discriminator.augment import diff_augment
from discriminator.features import FeatureNetwork
from discriminator.heads import DiscriminatorHeads
from discriminator.preprocess import fit_to_input_size


class Discriminator(nn.Module):
    """Feature network F and heads. `logits(heads, features(real), features(fake), condition)` gives the logits.

    The two halves are called apart, because R1 (ADD, eq. 3) differentiates with respect to what lies between them.

    Attributes:
        feature_network: frozen; gradients flow through it to the images only.
        heads: trainable. In eval mode a forward pass leaves its buffers (spectral norm) alone, which is the mode for
            the student's step.
        augment: whether `features` applies DiffAugment.
        mixes: whether real and generated samples are normalized together.
    """

    def __init__(
        self,
        feature_network: FeatureNetwork,
        condition_dim: int = 0,
        augment: bool = True,
        norm: str = "virtual_batch",
    ):
        """`condition_dim` is the size of the heads' condition, 0 for none; `norm` as in `heads.make_norm`."""
        super().__init__()
        self.feature_network = feature_network
        self.heads = DiscriminatorHeads(feature_network.width, feature_network.num_taps, condition_dim, norm)
        self.augment, self.mixes = augment, norm == "mixed_batch"

    def features(self, images: Tensor, uniform: Tensor, crop: tuple[float, float, float]) -> tuple[Tensor, ...]:
        """Features of augmented images, fitted to F's input size: K tensors `(B, C, N)`, in the dtype F gives them.

        Args:
            images: `(B, 3, H, W)` in [-1, 1], any size and floating dtype.
            uniform: `(B, AUGMENT_NUMBERS)` in [0, 1), the numbers of `diff_augment`.
            crop: three numbers in [0, 1), those of `fit_to_input_size`.
        """
        # A half-precision decoder's output would lose bits to every operation of the augmentation.
        images = images.float()
        if self.augment:
            images = diff_augment(images, uniform)
        images = fit_to_input_size((images + 1) / 2, self.feature_network.input_size, crop)
        return self.feature_network(images)

    def logits(
        self, heads: Callable, real: tuple[Tensor, ...], fake: tuple[Tensor, ...], condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits of real and of generated images, `(B, K, N)` each.

        Args:
            heads: of this discriminator, perhaps wrapped for distribution.
            real, fake: K features `(B, C, N)` each; sample i of both has the condition i.
            condition: `(B, D)` or None.
        """
        if not self.mixes:
            return heads(real, condition), heads(fake, condition)
        # Side by side, so that every virtual group holds as many of one kind as of the other.
        pairs = tuple(torch.stack([r, f], dim=1).flatten(0, 1) for r, f in zip(real, fake))
        logits = heads(pairs, None if condition is None else condition.repeat_interleave(2, dim=0))
        return logits[0::2], logits[1::2]

    def logits_of_fake(
        self, heads: Callable, real: tuple[Tensor, ...], fake: tuple[Tensor, ...], condition: Tensor | None
    ) -> Tensor:
        """The second half of `logits`, without the work of the first where that is not needed for it."""
        return self.logits(heads, real, fake, condition)[1] if self.mixes else heads(fake, condition)

"""The complete discriminator: augmentation, frozen features, trainable heads (ADD, section 3.2)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from discriminator.augment import diff_augment
from discriminator.features import FeatureNetwork
from discriminator.heads import DiscriminatorHeads
from discriminator.preprocess import fit_to_input_size


class Discriminator(nn.Module):
    """Feature network F and heads. `logits(heads, features(real), features(fake), condition)` returns the logits.

    Features and logits are separate methods, because R1 (ADD, eq. 3) differentiates with respect to the features.

    Attributes:
        feature_network: frozen network; gradients only flow through it to the images.
        heads: trainable heads. In eval mode, which the student's step uses, a forward pass does not change their
            buffers (spectral norm).
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
        """Features of augmented images, fitted to F's input size: K tensors `(B, C, N)` in the dtype of F.

        Args:
            images: `(B, 3, H, W)` in [-1, 1], any size and floating dtype.
            uniform: `(B, AUGMENT_NUMBERS)` in [0, 1), for `diff_augment`.
            crop: three numbers in [0, 1), for `fit_to_input_size`.
        """
        # In half precision, each operation of the augmentation would add rounding errors.
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
            heads: heads of this discriminator, possibly wrapped by accelerate.
            real, fake: K feature tensors `(B, C, N)` each; sample i of both has the condition i.
            condition: `(B, D)` or None.
        """
        if not self.mixes:
            return heads(real, condition), heads(fake, condition)
        # Interleaved, so that each virtual group contains as many real as generated samples.
        pairs = tuple(torch.stack([r, f], dim=1).flatten(0, 1) for r, f in zip(real, fake))
        logits = heads(pairs, None if condition is None else condition.repeat_interleave(2, dim=0))
        return logits[0::2], logits[1::2]

    def logits_of_fake(
        self, heads: Callable, real: tuple[Tensor, ...], fake: tuple[Tensor, ...], condition: Tensor | None
    ) -> Tensor:
        """The logits of generated images as in `logits`. Those of real images are only computed if they are needed."""
        return self.logits(heads, real, fake, condition)[1] if self.mixes else heads(fake, condition)

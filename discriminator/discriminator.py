"""The complete discriminator: augmentation, frozen features, trainable heads (ADD, section 3.2)."""

from torch import Tensor

from discriminator.adversary import Adversary
from discriminator.augment import diff_augment
from discriminator.features import FeatureNetwork
from discriminator.heads import DiscriminatorHeads
from discriminator.preprocess import fit_to_input_size


class Discriminator(Adversary):
    """Feature network F and heads. `logits(heads, features(real), features(fake), condition)` returns the logits.

    Attributes:
        feature_network: frozen; gradients flow through it to the images only.
        augment: whether `features` applies DiffAugment.
    """

    def __init__(
        self,
        feature_network: FeatureNetwork,
        condition_dim: int = 0,
        augment: bool = True,
        norm: str = "virtual_batch",
    ):
        """`condition_dim` is the size of the heads' condition, 0 for none; `norm` as in `heads.make_norm`."""
        heads = DiscriminatorHeads(feature_network.width, feature_network.num_taps, condition_dim, norm)
        super().__init__(heads, norm)
        self.feature_network, self.augment = feature_network, augment

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

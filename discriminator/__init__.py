"""The discriminator of Adversarial Diffusion Distillation: frozen feature network, trainable heads, condition.

Sources: ADD (2311.17042) section 3.2, and StyleGAN-T (2301.09515).
"""

from discriminator.augment import AUGMENT_NUMBERS, diff_augment
from discriminator.conditioning import ImageCondition, TextCondition, projection_condition
from discriminator.discriminator import Discriminator
from discriminator.features import FeatureNetwork
from discriminator.heads import NORMS, DiscriminatorHeads
from discriminator.preprocess import fit_to_input_size, normalize, resize

__all__ = [
    "AUGMENT_NUMBERS",
    "NORMS",
    "Discriminator",
    "DiscriminatorHeads",
    "FeatureNetwork",
    "ImageCondition",
    "TextCondition",
    "diff_augment",
    "fit_to_input_size",
    "normalize",
    "projection_condition",
    "resize",
]

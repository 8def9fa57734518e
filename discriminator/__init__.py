"""The discriminator of Adversarial Diffusion Distillation: frozen feature network, trainable heads, condition.

Sources: on pixels ADD (2311.17042) section 3.2 and StyleGAN-T (2301.09515), on latents LADD (2403.12015).
"""

from discriminator.adversary import Logits
from discriminator.augment import AUGMENT_NUMBERS, diff_augment
from discriminator.conditioning import ImageCondition, TextCondition, projection_condition
from discriminator.discriminator import Discriminator
from discriminator.features import FeatureNetwork
from discriminator.heads import NORMS, DiscriminatorHeads
from discriminator.latent import LatentDiscriminator
from discriminator.preprocess import fit_to_input_size, normalize, resize
from discriminator.unet_features import UNetFeatures, find_taps

__all__ = [
    "AUGMENT_NUMBERS",
    "NORMS",
    "Discriminator",
    "DiscriminatorHeads",
    "FeatureNetwork",
    "ImageCondition",
    "LatentDiscriminator",
    "Logits",
    "TextCondition",
    "UNetFeatures",
    "diff_augment",
    "find_taps",
    "fit_to_input_size",
    "normalize",
    "projection_condition",
    "resize",
]

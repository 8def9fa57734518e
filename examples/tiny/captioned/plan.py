"""How large the networks are and how long they are trained, from the number and the size of the images."""

from dataclasses import dataclass

REFERENCE_IMAGES = 1200  # the lengths below are for so many images to train on
LARGE_SET = 5000  # from so many images on, networks are wider
RESOLUTIONS = (32, 64)


@dataclass(frozen=True)
class Plan:
    """Sizes and lengths of every stage. Latents have 8 x 8 positions at either resolution.

    Attributes:
        resolution: pixels a side.
        latent_channels: channels of the latents.
        vae_channels: of the autoencoder's levels, each half as large as the one before.
        vae_batch_size: images a batch of the autoencoder.
        text_width: of the text encoder.
        vision_width: of the feature network.
        vision_layers: of the feature network.
        evaluator_widths: channels of the evaluator's stages.
        unet_channels: of the UNet's two levels.
        iterations: of the first round of each stage.
    """

    resolution: int
    latent_channels: int
    vae_channels: tuple[int, ...]
    vae_batch_size: int
    text_width: int
    vision_width: int
    vision_layers: int
    evaluator_widths: tuple[int, ...]
    unet_channels: tuple[int, int]
    iterations: dict[str, int]

    @property
    def unet_config(self) -> dict:
        """What `make_unet` and `make_sdxl_unet` are told beyond the text's width."""
        return {
            "channels": self.unet_channels,
            "latent_channels": self.latent_channels,
            "attention": (True, True),
        }


def lengthen(iterations: int, images: int) -> int:
    """`iterations` for a set of `images`: grows with the square root, at most four times."""
    return round(iterations * min(max((images / REFERENCE_IMAGES) ** 0.5, 0.5), 4.0))


def make_plan(resolution: int, images: int) -> Plan:
    """The plan for so many training `images` of `resolution` pixels, 32 or 64."""
    lengths = {"clip": 900, "autoencoder": 1500, "evaluator": 2000, "feature_network": 1500, "teacher": 4500}
    large = images >= LARGE_SET
    return Plan(
        resolution=resolution,
        latent_channels=4 if resolution == 32 else 8,
        vae_channels=(16, 16, 32) if resolution == 32 else (16, 16, 48, 96),
        vae_batch_size=16 if resolution == 32 else 8,
        text_width=96 if large else 64,
        vision_width=128 if large else 64,
        vision_layers=4,
        evaluator_widths=(64, 128, 256) if large else (32, 64, 128),
        unet_channels=(64, 128) if large else (48, 96),
        iterations={stage: lengthen(iterations, images) for stage, iterations in lengths.items()},
    )

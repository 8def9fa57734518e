"""Latent spaces: encoding with the scaling of the autoencoder, and decoding of images or of a window of them."""

from dataclasses import dataclass
from typing import cast

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """A square window of a latent grid: `top`, `left` and `size` in latent pixels."""

    top: int
    left: int
    size: int

    @classmethod
    def draw(cls, grid: tuple[int, int], size: int, uniform: tuple[float, float]) -> "Window":
        """A window of `size` in a `grid` of (H, W) latents; its position is uniform for `uniform` numbers in [0, 1)."""
        top, left = (int(u * (side - size + 1)) for u, side in zip(uniform, grid))
        return cls(top, left, size)

    def of_pixels(self, images: Tensor, factor: int) -> Tensor:
        """The window of images `(B, C, H, W)` whose height and width are `factor` times those of the grid."""
        rows = slice(self.top * factor, (self.top + self.size) * factor)
        columns = slice(self.left * factor, (self.left + self.size) * factor)
        return images[..., rows, columns]


def encode_posterior(vae: AutoencoderKL, x: Tensor) -> DiagonalGaussianDistribution:
    """The posterior of images `(B, 3, H, W)` in [-1, 1], unscaled."""
    return cast(AutoencoderKLOutput, vae.encode(x)).latent_dist  # a tuple only where one asks for it


def decode_latents(vae: AutoencoderKL | AutoencoderTiny, z: Tensor) -> Tensor:
    """Images `(B, 3, H, W)` of unscaled latents, in the precision of the autoencoder."""
    return cast(DecoderOutput, vae.decode(cast(torch.FloatTensor, z))).sample


@dataclass(frozen=True)
class LatentSpace:
    """Converts images `(B, 3, H, W)` in [-1, 1] to latents `(B, C, H/f, W/f)` of about unit variance, and back.

    The frozen autoencoder runs in its own precision instead of that of the run, because SDXL's overflows in fp16.

    Attributes:
        vae: frozen autoencoder that encodes, and decodes unless there is a `decoder`.
        decoder: small decoder of the same latent space (TAESD), or None.
        halo: width of the border that is decoded around a window and discarded, so that the decoder has context at the
            edges. Because attention and group norms of a decoder cover the whole image, a larger halo approaches the
            result of decoding the whole image without reaching it exactly.
    """

    vae: AutoencoderKL
    decoder: AutoencoderTiny | None = None
    halo: int = 4

    @property
    def factor(self) -> int:
        """The downsampling factor f, pixels per latent pixel."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @torch.no_grad()
    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior of `x`, scaled like latents, in float32 without gradients."""
        with torch.autocast(x.device.type, enabled=False):
            posterior = encode_posterior(self.vae, x.to(self.vae.dtype))
        scale = self.vae.config["scaling_factor"]
        return (posterior.mean.float() - self._shift(self.vae)) * scale, posterior.std.float() * scale

    def decode(self, z: Tensor, window: Window | None = None) -> Tensor:
        """Decode latents to float32 images, differentiable with respect to z.

        Args:
            window: decode only this window, to `(B, 3, f * size, f * size)`, with a halo that ends at the image's edge.
        """
        if window is None:
            return self._decode(z)
        top, left = max(0, window.top - self.halo), max(0, window.left - self.halo)
        bottom, right = window.top + window.size + self.halo, window.left + window.size + self.halo
        images = self._decode(z[..., top:bottom, left:right])
        return Window(window.top - top, window.left - left, window.size).of_pixels(images, self.factor)

    def _decode(self, z: Tensor) -> Tensor:
        decoder = self.decoder or self.vae
        with torch.autocast(z.device.type, enabled=False):
            z = z.float() / decoder.config["scaling_factor"] + self._shift(decoder)
            return decode_latents(decoder, z.to(decoder.dtype)).float()

    @staticmethod
    def _shift(vae: AutoencoderKL | AutoencoderTiny) -> float:
        return getattr(vae.config, "shift_factor", None) or 0.0

    def is_same_space(self, other: "LatentSpace") -> bool:
        """Whether both use the same latents, with equal encoders (including `quant_conv`) and scaling.

        Decoders may differ: Stable Diffusion's later autoencoders have fine-tuned decoders for the same latent space.
        """
        a, b = self.vae, other.vae
        if a is b:
            return True
        if (a.config["scaling_factor"], self._shift(a)) != (b.config["scaling_factor"], self._shift(b)):
            return False
        mine, theirs = _encoder_weights(a), _encoder_weights(b)
        return mine.keys() == theirs.keys() and all(
            w.shape == theirs[name].shape and torch.allclose(w.float(), theirs[name].float(), rtol=1e-2, atol=1e-3)
            for name, w in mine.items()
        )


def _encoder_weights(vae: AutoencoderKL) -> dict[str, Tensor]:
    """The weights that map an image to its posterior: those of the encoder and of `quant_conv`, if there is one."""
    parts = {"encoder": vae.encoder, "quant_conv": vae.quant_conv}
    return {
        f"{part}.{name}": weight
        for part, module in parts.items()
        if module is not None
        for name, weight in module.state_dict().items()
    }

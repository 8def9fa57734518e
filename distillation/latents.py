"""A latent space: its autoencoder, its scaling, and decoding only the part of an image that the losses use."""

from dataclasses import dataclass
from typing import cast

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """A square of a latent grid: `top` and `left` corner and `size`, in latents."""

    top: int
    left: int
    size: int

    @classmethod
    def draw(cls, grid: tuple[int, int], size: int, uniform: tuple[float, float]) -> "Window":
        """The window of `size` in a `grid` of (H, W) latents that two numbers in [0, 1) choose, evenly over places."""
        top, left = (int(u * (side - size + 1)) for u, side in zip(uniform, grid))
        return cls(top, left, size)

    def of_pixels(self, images: Tensor, factor: int) -> Tensor:
        """The window's part of images `(B, C, H, W)` whose sides are `factor` times the grid's."""
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
    """Images `(B, 3, H, W)` in [-1, 1] to latents `(B, C, H/f, W/f)` of about unit variance, and back.

    The frozen autoencoder runs in its own precision, never in the run's: SDXL's overflows in fp16.

    Attributes:
        vae: frozen; encodes, and decodes unless there is a `decoder`.
        decoder: a small stand-in for the decoder of the same space (TAESD), or None.
        halo: latents decoded around a window and thrown away, so that pixels at its border are decoded with their
            surroundings. A decoder's attention and group norms cover the whole image, so the window of a full decode
            is approached with a larger halo, but never reached.
    """

    vae: AutoencoderKL
    decoder: AutoencoderTiny | None = None
    halo: int = 4

    @property
    def factor(self) -> int:
        """f, pixels a latent."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @torch.no_grad()
    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior of `x`, scaled as latents are. float32, no gradient."""
        with torch.autocast(x.device.type, enabled=False):
            posterior = encode_posterior(self.vae, x.to(self.vae.dtype))
        scale = self.vae.config["scaling_factor"]
        return (posterior.mean.float() - self._shift(self.vae)) * scale, posterior.std.float() * scale

    def decode(self, z: Tensor, window: Window | None = None) -> Tensor:
        """Latents to images, float32, differentiable with respect to z.

        Args:
            window: decode this part only, `(B, 3, f * size, f * size)`, with a halo where the image goes on.
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
        """Whether latents of one mean the same in the other: equal encoders (`quant_conv` included) and scaling.

        Decoders may differ: Stable Diffusion's later autoencoders are fine-tuned decoders of the first one's space.
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
    """The weights between an image and its posterior: the encoder's and, where there is one, `quant_conv`'s."""
    parts = {"encoder": vae.encoder, "quant_conv": vae.quant_conv}
    return {
        f"{part}.{name}": weight
        for part, module in parts.items()
        if module is not None
        for name, weight in module.state_dict().items()
    }

"""The KL autoencoder: images `(B, 3, 32, 32)` in [-1, 1] to latents `(B, 4, 8, 8)` and back."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from distillation.latents import decode_latents, encode_posterior
from evaluation.tiny.split import Split
from examples.tiny.images import shift
from examples.tiny.loop import draw, fit
from examples.tiny.models import make_vae

BATCH_SIZE = 32
LEARNING_RATE = 2e-3
ITERATIONS = 450
KL_WEIGHT = 1e-4
GRADIENT_WEIGHT = 1.0


def reconstruction_loss(output: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """L1 on pixels plus L1 on the differences of neighbouring pixels, which punishes blur; `(B, 3, H, W)` both."""
    error = output - image
    return error.abs().mean() + GRADIENT_WEIGHT * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())


@torch.no_grad()
def encode_moments(vae: AutoencoderKL, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the posterior of `pixels (N, 3, H, W)`, unscaled, each `(N, 4, H/4, W/4)`."""
    posteriors = [encode_posterior(vae, chunk) for chunk in pixels.split(256)]
    return torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])


@torch.no_grad()
def center_latents(vae: AutoencoderKL, pixels: torch.Tensor) -> None:
    """Shift each latent channel to mean 0 on `pixels (N, 3, H, W)`; what `vae` reconstructs stays the same.

    Sampling starts from noise of mean 0, and Stable Diffusion's pipelines can scale latents but not shift them. The
    1x1 convolutions on both sides of the latent take up the shift.
    """
    mean = encode_moments(vae, pixels)[0].mean(dim=(0, 2, 3))
    vae.get_parameter("quant_conv.bias")[: len(mean)] -= mean
    vae.get_parameter("post_quant_conv.bias").add_(vae.get_parameter("post_quant_conv.weight").flatten(1) @ mean)


@torch.no_grad()
def measure_psnr(vae: AutoencoderKL, pixels: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of reconstructions through the posterior mean, in dB."""
    mean, _ = encode_moments(vae, pixels)
    output = torch.cat([decode_latents(vae, chunk).clamp(-1, 1) for chunk in mean.split(256)])
    return -10 * torch.log10(F.mse_loss(output, pixels) / 4).item()


def train_autoencoder(out: Path, train: Split, test: Split, iterations: int = ITERATIONS) -> dict[str, float]:
    """Train and save an `AutoencoderKL` in `out`, its `scaling_factor` measured. Returns measured quality."""
    vae = make_vae()

    def loss_of_batch() -> torch.Tensor:
        image = shift(train.pixels[draw(len(train.pixels), BATCH_SIZE)], 2)
        posterior = encode_posterior(vae, image)
        output = decode_latents(vae, posterior.sample())
        # KL per latent element, so that its weight does not depend on the resolution.
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return reconstruction_loss(output, image) + KL_WEIGHT * kl

    fit([vae], loss_of_batch, iterations=iterations, learning_rate=LEARNING_RATE, title="autoencoder")
    center_latents(vae, train.pixels)
    mean, std = encode_moments(vae, train.pixels)
    scale = (mean.var() + std.square().mean()).sqrt().item()
    vae.register_to_config(scaling_factor=1 / scale)
    vae.save_pretrained(out)
    return {"psnr_db": measure_psnr(vae, test.pixels), "scaling_factor": 1 / scale}

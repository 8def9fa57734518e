"""The KL autoencoder of a captioned folder: images `(B, 3, H, H)` in [-1, 1] to latents `(B, C, 8, 8)` and back."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from distillation.latents import decode_latents, encode_posterior
from evaluation.tiny.split import Split
from examples.tiny.autoencoder import center_latents, encode_moments, measure_psnr
from examples.tiny.captioned.gates import Course, Gate
from examples.tiny.captioned.plan import Plan
from examples.tiny.images import shift
from examples.tiny.loop import draw, fit
from examples.tiny.models import make_vae

LEARNING_RATE = 2e-3
EMA_DECAY = 0.995
KL_WEIGHT = 1e-4
NORM_GROUPS = 4
INITIAL_LOGVAR = -5.0
MEASURED_IMAGES = 400
GATES = (Gate("psnr_db", 24.0, "Give more images, or images with less fine detail"),)


@torch.no_grad()
def start_near_identity(vae: AutoencoderKL) -> None:
    """Initialize `vae` so that it passes on colours from the first step.

    Residual branches start at zero, resampling convolutions near averaging and copying, the posterior narrow. With the
    usual initialization, narrow networks with group normalization learn brightness first and colours very late.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            if module.conv_shortcut is not None:
                nn.init.orthogonal_(module.conv_shortcut.weight)
        elif isinstance(module, Downsample2D):
            weight = module.get_parameter("conv.weight").mul_(0.1)
            weight[:, :, :2, :2] += torch.eye(len(weight))[:, :, None, None] / 4
        elif isinstance(module, Upsample2D):
            weight = module.get_parameter("conv.weight").mul_(0.1)
            weight[:, :, 1, 1] += torch.eye(len(weight))
        elif isinstance(module, Attention):
            nn.init.zeros_(module.get_parameter("to_out.0.weight"))
    vae.get_parameter("quant_conv.bias")[vae.config["latent_channels"] :] += INITIAL_LOGVAR


def reconstruction_loss(output: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """L1 and squared error, `(B, 3, H, W)` both. The squared error finds colours, L1 keeps edges sharp."""
    error = output - image
    return error.abs().mean() + error.square().mean()


def train_autoencoder(out: Path, train: Split, test: Split, plan: Plan, course: Course) -> dict[str, float]:
    """Train and save an `AutoencoderKL` in `out`, its `scaling_factor` measured. Returns its figures.

    Raises:
        GateMissedError: reconstructions of held-out images are too poor.
    """
    vae = make_vae(plan.vae_channels, plan.latent_channels, plan.resolution, NORM_GROUPS)
    start_near_identity(vae)

    def loss_of_batch() -> torch.Tensor:
        image = shift(train.pixels[draw(len(train.pixels), plan.vae_batch_size)], 2)
        posterior = encode_posterior(vae, image)
        # KL per latent element, so that its weight does not depend on the resolution.
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return reconstruction_loss(decode_latents(vae, posterior.sample()), image) + KL_WEIGHT * kl

    def fit_round(part: int, iterations: int) -> None:
        settings = {"learning_rate": LEARNING_RATE, "ema_decay": EMA_DECAY, "checkpoint": course.checkpoint}
        fit([vae], loss_of_batch, iterations=iterations, title="autoencoder", part=part, **settings)

    figures = course.run(fit_round, lambda: {"psnr_db": measure_psnr(vae, test.pixels[:MEASURED_IMAGES])}, GATES)
    center_latents(vae, train.pixels)
    mean, std = encode_moments(vae, train.pixels)
    scale = (mean.var() + std.square().mean()).sqrt().item()
    vae.register_to_config(scaling_factor=1 / scale)
    vae.save_pretrained(out)
    return {**figures, "scaling_factor": 1 / scale}

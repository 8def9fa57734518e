"""The teacher: a text-conditional latent diffusion model in Stable Diffusion's layout or SDXL's."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image
from transformers import Dinov2ForImageClassification

from evaluation.tiny.split import Split
from examples.tiny.autoencoder import encode_moments
from examples.tiny.layouts import assemble, encode_captions, pick
from examples.tiny.loop import draw, fit
from examples.tiny.models import PredictionType, make_scheduler
from examples.tiny.vision import classify
from training.models.calling import call_pipeline

BATCH_SIZE = 32
LEARNING_RATE = 1.5e-3
ITERATIONS = 1000
EMA_DECAY = 0.995
CAPTION_DROPOUT = 0.1
PREVIEW_STEPS = 25
PREVIEW_GUIDANCE = 2.0
PREVIEW_COUNT = 100
PREVIEW_COLUMNS = 20


def train_teacher(
    out: Path,
    clip_folders: Sequence[Path],
    vae_folder: Path,
    train: Split,
    prediction_type: PredictionType = "epsilon",
    iterations: int = ITERATIONS,
) -> dict[str, float]:
    """Train a UNet and save the whole pipeline in `out`: Stable Diffusion's for one CLIP, SDXL's for two.

    Latents and caption embeddings are computed once. One caption in ten is left out, so that the model knows both
    sides of classifier-free guidance. Returns measured quality.
    """
    vae = AutoencoderKL.from_pretrained(vae_folder).eval().requires_grad_(False)
    mean, std = (moment * vae.config["scaling_factor"] for moment in encode_moments(vae, train.pixels))
    pipeline = assemble(clip_folders, vae, make_scheduler(prediction_type))
    unet, scheduler = pipeline.unet, pipeline.scheduler
    captions = sorted(set(train.captions))
    conditions = encode_captions(pipeline, captions)
    caption_ids = torch.tensor([1 + captions.index(caption) for caption in train.captions])

    def loss_of_batch() -> torch.Tensor:
        rows = draw(len(mean), BATCH_SIZE)
        latents = mean[rows] + std[rows] * torch.randn_like(mean[rows])
        noise = torch.randn_like(latents)
        # One timestep from each of B equal parts of the schedule: same marginals, less variance between batches.
        t = (torch.arange(BATCH_SIZE) + torch.rand(BATCH_SIZE)) / BATCH_SIZE * scheduler.config.num_train_timesteps
        t = t.long()
        ids = torch.where(torch.rand(BATCH_SIZE) < CAPTION_DROPOUT, 0, caption_ids[rows])
        output = unet(scheduler.add_noise(latents, noise, t), t, **pick(conditions, ids)).sample
        target = noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, t)
        return F.mse_loss(output, target)

    fit(
        [unet],
        loss_of_batch,
        iterations=iterations,
        learning_rate=LEARNING_RATE,
        title=f"teacher ({prediction_type})",
        ema_decay=EMA_DECAY,
    )
    # Where it was loaded from is nobody's business, and would make the bytes depend on the folder's name.
    vae.register_to_config(_name_or_path="autoencoder")
    pipeline.save_pretrained(out)
    return {"latent_std": (mean.var() + std.square().mean()).sqrt().item()}


def preview_teacher(out: Path, teacher_folder: Path, evaluator_folder: Path, test: Split) -> dict[str, float]:
    """Draw the teacher's pictures for held-out captions into `out/teacher.png`.

    Returns the share whose label, as the evaluator reads it, is the caption's.
    """
    pipeline = DiffusionPipeline.from_pretrained(teacher_folder)
    pipeline.set_progress_bar_config(desc="preview")
    evaluator = Dinov2ForImageClassification.from_pretrained(evaluator_folder).eval()
    order = sorted(range(len(test.captions)), key=lambda i: test.labels[i])
    count = min(PREVIEW_COUNT, len(order))
    chosen = [order[i * len(order) // count] for i in range(count)]
    pixels = call_pipeline(
        pipeline,
        [test.captions[i] for i in chosen],
        num_inference_steps=PREVIEW_STEPS,
        guidance_scale=PREVIEW_GUIDANCE,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    out.mkdir(parents=True, exist_ok=True)
    save_grid(out / "teacher.png", pixels)
    read = classify(evaluator, pixels * 2 - 1)
    agreement = sum(read[k] == test.labels[i] for k, i in enumerate(chosen)) / len(chosen)
    return {"steps": PREVIEW_STEPS, "guidance": PREVIEW_GUIDANCE, "agreement": agreement}


def save_grid(path: Path, pixels: torch.Tensor) -> None:
    """`pixels (N, 3, H, W)` in [0, 1] as rows of `PREVIEW_COLUMNS` pictures, the last one filled with black."""
    rows = []
    for row in pixels.split(PREVIEW_COLUMNS):
        missing = min(PREVIEW_COLUMNS, len(pixels)) - len(row)
        rows.append(torch.cat([row, torch.zeros(missing, *row.shape[1:])]).permute(2, 0, 3, 1).flatten(1, 2))
    Image.fromarray(torch.cat(rows).mul(255).round().byte().numpy()).save(path)

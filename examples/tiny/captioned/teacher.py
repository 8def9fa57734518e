"""The teacher of a captioned folder, in Stable Diffusion's layout or SDXL's, and how good its pictures are."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline
from transformers import ResNetForImageClassification

from evaluation.metrics import frechet_distance
from evaluation.tiny.split import Split
from examples.tiny.autoencoder import encode_moments
from examples.tiny.captioned.gates import Course, Gate
from examples.tiny.captioned.plan import Plan
from examples.tiny.captioned.vision import look, read_attributes
from examples.tiny.layouts import assemble, encode_captions, pick
from examples.tiny.loop import draw, fit
from examples.tiny.models import PredictionType, make_scheduler
from examples.tiny.teacher import save_grid
from training.models.calling import call_pipeline

BATCH_SIZE = 32
LEARNING_RATE = 1e-3
EMA_DECAY = 0.998
CAPTION_DROPOUT = 0.1
STEPS = 25
GUIDANCE = 3.0
MEASURED_PICTURES = 300
PREVIEW_COUNT = 100
SAMPLING_BATCH = 50
ADVICE = "Give more images, or fewer things that captions tell apart"
GATES = (Gate("relative_agreement", 0.85, ADVICE), Gate("relative_distance", 4.0, ADVICE, at_most=True))


def train_teacher(
    out: Path,
    clip_folders: Sequence[Path],
    vae_folder: Path,
    evaluator_folder: Path,
    train: Split,
    test: Split,
    plan: Plan,
    course: Course,
    prediction_type: PredictionType = "epsilon",
) -> dict[str, float]:
    """Train a UNet and save the whole pipeline in `out`: Stable Diffusion's for one CLIP, SDXL's for two.

    Latents and caption embeddings are computed once. One caption in ten is left out, so that the model knows both
    sides of classifier-free guidance. Returns its figures.

    Raises:
        GateMissedError: the teacher's guided pictures are too far from the held-out ones or from their captions.
    """
    vae = AutoencoderKL.from_pretrained(vae_folder).eval().requires_grad_(False)
    evaluator = ResNetForImageClassification.from_pretrained(evaluator_folder).eval()
    mean, std = (moment * vae.config["scaling_factor"] for moment in encode_moments(vae, train.pixels))
    pipeline = assemble(clip_folders, vae, make_scheduler(prediction_type), **plan.unet_config)
    unet, scheduler = pipeline.unet, pipeline.scheduler
    captions = sorted(set(train.captions))
    conditions = encode_captions(pipeline, captions)
    index = {caption: k for k, caption in enumerate(captions)}
    caption_ids = torch.tensor([1 + index[caption] for caption in train.captions])

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

    def fit_round(part: int, iterations: int) -> None:
        settings = {"learning_rate": LEARNING_RATE, "ema_decay": EMA_DECAY, "checkpoint": course.checkpoint}
        fit([unet], loss_of_batch, iterations=iterations, title=f"teacher ({prediction_type})", part=part, **settings)

    figures = course.run(fit_round, lambda: measure_teacher(pipeline, evaluator, train, test), GATES)
    # Where it was loaded from is nobody's business, and would make the bytes depend on the folder's name.
    vae.register_to_config(_name_or_path="autoencoder")
    pipeline.save_pretrained(out)
    return figures


@torch.no_grad()
def draw_pictures(
    pipeline: DiffusionPipeline, captions: Sequence[str], steps: int, guidance: float, seed: int = 0
) -> torch.Tensor:
    """One picture for each caption, `(N, 3, H, W)` in [-1, 1]. Picture n depends on `seed` and n alone."""
    pipeline.set_progress_bar_config(disable=True)
    batches = []
    for start in range(0, len(captions), SAMPLING_BATCH):
        chunk = list(captions[start : start + SAMPLING_BATCH])
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + start + k) for k in range(len(chunk))]
        settings = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt"}
        batches.append(call_pipeline(pipeline, chunk, generator=generators, **settings).images)
    return torch.cat(batches) * 2 - 1


def measure_teacher(
    pipeline: DiffusionPipeline,
    evaluator: ResNetForImageClassification,
    train: Split,
    test: Split,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    count: int = MEASURED_PICTURES,
) -> dict[str, float]:
    """Agreement and Frechet distance of pictures drawn for held-out captions, and the same of real images.

    At most `count` pictures are drawn, and no more than there are captions.

    Returns:
        `agreement` and `distance` of the pictures; `real_agreement` of the held-out images and `floor`, the distance
        of as many training images from them; `relative_agreement` and `relative_distance`, the quotients.
    """
    count = min(count, len(test.captions), len(train.captions))
    attributes = read_attributes(evaluator)
    targets = attributes.targets(test)
    features, logits = look(evaluator, test.pixels)
    real = attributes.agreement(logits, targets)
    others = torch.randperm(len(train.pixels), generator=torch.Generator().manual_seed(0))[:count]
    floor = frechet_distance(features, look(evaluator, train.pixels[others])[0])
    features_drawn, logits_drawn = look(evaluator, draw_pictures(pipeline, test.captions[:count], steps, guidance))
    drawn = attributes.agreement(logits_drawn, targets[:count])
    distance = frechet_distance(features, features_drawn)
    return {
        **drawn,
        "real_agreement": real["agreement"],
        "relative_agreement": drawn["agreement"] / real["agreement"] if real["agreement"] else 0.0,
        "distance": distance,
        "floor": floor,
        "relative_distance": distance / floor,
    }


def preview_teacher(
    out: Path, teacher_folder: Path, evaluator_folder: Path, train: Split, test: Split
) -> dict[str, float]:
    """Draw held-out captions into `out/teacher.png`, in `STEPS` steps above and in one step below.

    Returns the figures of one step, which is to be bad: it is what distillation mends.
    """
    pipeline = DiffusionPipeline.from_pretrained(teacher_folder)
    evaluator = ResNetForImageClassification.from_pretrained(evaluator_folder).eval()
    captions = test.captions[:PREVIEW_COUNT]
    pictures = [draw_pictures(pipeline, captions, *settings) for settings in ((STEPS, GUIDANCE), (1, 1.0))]
    out.mkdir(parents=True, exist_ok=True)
    save_grid(out / "teacher.png", torch.cat(pictures) / 2 + 0.5)
    figures = measure_teacher(pipeline, evaluator, train, test, steps=1, guidance=1.0)
    return {f"one_step_{name}": figures[name] for name in ("agreement", "distance", "relative_distance")}

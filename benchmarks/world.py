"""Full-size models with random weights and images on disk, for measuring the training script."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from benchmarks.architectures import (
    ARCHITECTURES,
    DINOV2_L,
    DINOV2_S,
    Architecture,
    make_dinov2,
    make_openclip_g,
    make_tiny_vae,
)
from examples.tiny.models import make_tokenizer

CAPTION = "a photograph of an astronaut riding a horse"
IMAGES = 32
DONE = "complete"


def build_world(model: str, folder: Path, resolution: int, device: torch.device) -> Path:
    """Write teacher, F, encoders of c, a tiny decoder and images to `folder`, in fp16, unless they exist already."""
    if (folder / DONE).is_file():
        return folder
    torch.manual_seed(0)
    tokenizer = make_tokenizer([CAPTION])
    tokenizer.model_max_length = 77
    with torch.device(device):  # on a CPU, initializing 2.6 billion weights takes minutes
        for name, module in (
            ("feature_network", make_dinov2(DINOV2_S)),
            ("image_condition", make_dinov2(DINOV2_L)),
            ("tiny_vae", make_tiny_vae()),
        ):
            module.half().save_pretrained(folder / name)
        text = make_openclip_g(**_special_tokens(tokenizer))
        text.half().save_pretrained(folder / "text_condition")
        pipeline = _make_pipeline(ARCHITECTURES[model], tokenizer)
    tokenizer.save_pretrained(folder / "text_condition")
    pipeline.save_pretrained(folder / "teacher")
    _write_images(folder / "data", resolution)
    (folder / DONE).touch()
    return folder


def _special_tokens(tokenizer) -> dict[str, int]:
    return {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}


def _make_pipeline(architecture: Architecture, tokenizer) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=architecture.prediction_type,
    )  # fmt: skip
    parts: dict[str, Any] = {
        "vae": architecture.make_vae().half(), "unet": architecture.make_unet().half(), "scheduler": scheduler,
    }  # fmt: skip
    encoders = [encoder.half() for encoder in architecture.make_text_encoders(**_special_tokens(tokenizer))]
    if architecture.layout == "sd":
        parts |= {"text_encoder": encoders[0], "safety_checker": None, "feature_extractor": None}
        return StableDiffusionPipeline(**parts, tokenizer=tokenizer, requires_safety_checker=False)
    parts |= {"text_encoder": encoders[0], "text_encoder_2": encoders[1]}
    return StableDiffusionXLPipeline(**parts, tokenizer=tokenizer, tokenizer_2=tokenizer)


def _write_images(folder: Path, resolution: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator, lines = np.random.default_rng(0), []
    for i in range(IMAGES):
        pixels = generator.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.jpg")
        lines.append(f'{{"file_name": "{i:02}.jpg", "text": "{CAPTION}, {i}"}}')
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")

"""A whole world of untrained networks on disk, in the layouts that the training scripts read. Seconds, not minutes."""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTextModel

from examples.tiny import models

CAPTIONS = [f"a handwritten {word}" for word in ("zero", "one", "two", "three", "four", "five", "six", "seven")]


def build(folder: Path, prediction_type: str = "epsilon", num_images: int = 24) -> Path:
    """`folder/teacher`, `/feature_network`, `/clip` and `/data`. Returns `folder`."""
    torch.manual_seed(0)
    tokenizer = models.make_tokenizer(CAPTIONS)
    clip = models.make_clip(tokenizer, width=32, layers=1)
    text_encoder = CLIPTextModel(clip.config.text_config)
    text_encoder.load_state_dict(clip.text_model.state_dict(), strict=False)
    StableDiffusionPipeline(
        vae=models.make_vae((8, 8, 8)),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=models.make_unet((16, 32), cross_attention_dim=32),
        scheduler=models.make_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "teacher")
    models.make_dinov2(width=32, layers=4).save_pretrained(folder / "feature_network")
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    write_images(folder / "data", num_images)
    return folder


def write_images(folder: Path, count: int) -> None:
    """`count` small random pictures with captions, as an image folder."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines = []
    for i in range(count):
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i:03}.png")
        lines.append(f'{{"file_name": "{i:03}.png", "text": "{CAPTIONS[i % len(CAPTIONS)]}"}}')
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def flags(world: Path, output_dir: Path, *extra: object) -> list[str]:
    """The flags of a short run in `world`; `extra` ones come last and win."""
    return [
        str(part)
        for part in (
            "--pretrained_teacher_model", world / "teacher",
            "--train_data_dir", world / "data",
            "--discriminator_feature_model", world / "feature_network",
            "--discriminator_text_model", world / "clip",
            "--discriminator_image_model", world / "feature_network",
            "--output_dir", output_dir,
            "--resolution", 32, "--train_batch_size", 4, "--max_train_steps", 2, "--seed", 0,
            "--learning_rate", 1e-3, "--report_to", "none", *extra,
        )
    ]  # fmt: skip

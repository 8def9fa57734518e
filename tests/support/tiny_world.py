"""A whole world of untrained networks on disk, in the layouts that the training scripts read. Seconds, not minutes."""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from transformers import CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from examples.tiny import models

CAPTIONS = [f"a handwritten {word}" for word in ("zero", "one", "two", "three", "four", "five", "six", "seven")]
WIDTHS = (32, 64)  # of the first and, in SDXL's layout, the second text encoder
SDXL_SCALING_FACTOR = 0.13025  # SDXL's own, so that the two layouts' latent spaces differ
T5_WIDTH = 128  # at least that of both CLIPs side by side


def build(folder: Path, prediction_type: str = "epsilon", num_images: int = 24, layout: str = "sd") -> Path:
    """`folder/teacher` in `layout` "sd", "sdxl" or "sd3", `/feature_network`, `/clip` and `/data`. Returns `folder`."""
    torch.manual_seed(0)
    tokenizer = models.make_tokenizer(CAPTIONS)
    clip = models.make_clip(tokenizer, width=WIDTHS[0], layers=1)
    make_teacher = {"sd": make_sd_teacher, "sdxl": make_sdxl_teacher, "sd3": make_sd3_teacher}[layout]
    make_teacher(clip, tokenizer, prediction_type).save_pretrained(folder / "teacher")
    models.make_dinov2(width=32, layers=4).save_pretrained(folder / "feature_network")
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    write_images(folder / "data", num_images)
    return folder


def make_sd_teacher(clip: CLIPModel, tokenizer: CLIPTokenizer, prediction_type: str) -> StableDiffusionPipeline:
    """Its text encoder is the text tower of `clip`."""
    text_encoder = CLIPTextModel(clip.config.text_config)
    text_encoder.load_state_dict(clip.text_model.state_dict(), strict=False)
    return StableDiffusionPipeline(
        vae=models.make_vae((8, 8, 8)),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=models.make_unet((16, 32), cross_attention_dim=WIDTHS[0]),
        scheduler=models.make_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_sdxl_teacher(_: CLIPModel, tokenizer: CLIPTokenizer, prediction_type: str) -> StableDiffusionXLPipeline:
    """Two text encoders of two layers each, of which SDXL reads the last but one."""
    tokenizer_2 = models.make_tokenizer(CAPTIONS, pad_token="!")
    vae = models.make_vae((8, 8, 8))
    vae.register_to_config(scaling_factor=SDXL_SCALING_FACTOR)
    clips = [models.make_clip(t, width) for t, width in zip((tokenizer, tokenizer_2), WIDTHS)]
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(clips[0].config.text_config),
        text_encoder_2=CLIPTextModelWithProjection(clips[1].config.text_config),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=models.make_sdxl_unet((16, 32), WIDTHS),
        scheduler=models.make_scheduler(prediction_type),
    )


def make_sd3_teacher(_: CLIPModel, tokenizer: CLIPTokenizer, __: str) -> StableDiffusion3Pipeline:
    """Two CLIPs of two layers each, of which the last but one is read, and T5. It predicts the velocity."""
    tokenizer_2, tokenizer_3 = models.make_tokenizer(CAPTIONS, pad_token="!"), models.make_t5_tokenizer(CAPTIONS)
    clips = [models.make_clip(t, width) for t, width in zip((tokenizer, tokenizer_2), WIDTHS)]
    return StableDiffusion3Pipeline(
        vae=models.make_sd3_vae((8, 8, 8)),
        text_encoder=CLIPTextModelWithProjection(clips[0].config.text_config),
        text_encoder_2=CLIPTextModelWithProjection(clips[1].config.text_config),
        text_encoder_3=models.make_t5(tokenizer_3, T5_WIDTH),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        tokenizer_3=tokenizer_3,
        transformer=models.make_sd3_transformer(T5_WIDTH, sum(WIDTHS)),
        scheduler=models.make_flow_scheduler(),
    )


def write_images(folder: Path, count: int) -> None:
    """`count` small random pictures with captions, as an image folder."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines = []
    for i in range(count):
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i:03}.png")
        lines.append(f'{{"file_name": "{i:03}.png", "text": "{CAPTIONS[i % len(CAPTIONS)]}"}}')
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def write_flawed_images(folder: Path) -> None:
    """8 pictures as `write_images` makes them, of which the first cannot be read and the last two are half as large."""
    write_images(folder, 8)
    (folder / "000.png").write_bytes(b"no picture")
    for name in ("006.png", "007.png"):
        with Image.open(folder / name) as image:
            image.resize((16, 16)).save(folder / name)


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

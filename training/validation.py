"""Sample grids of the student during training, at 1, 2 and 4 steps and with the same noise every time, under a row of
the teacher's samples."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from diffusers.training_utils import EMAModel
from PIL import Image, ImageDraw, ImageFont
from torch import nn

VALIDATION_STEPS = (1, 2, 4)
TEACHER_STEPS, TEACHER_GUIDANCE = 25, 7.5
CELL = 128  # pixels: smaller samples are enlarged by a whole factor, so that a person can see them
GAP, FONT_SIZE = 4, 11


@contextmanager
def averaged(student: nn.Module, ema: EMAModel | None) -> Iterator[nn.Module]:
    """`student` in eval mode with the weights of its average `ema`, if there is one; restored afterwards."""
    training, trainable = student.training, [p for p in student.parameters() if p.requires_grad]
    student.eval()
    if ema is not None:
        ema.store(trainable)
        ema.copy_to(trainable)
    try:
        yield student
    finally:
        if ema is not None:
            ema.restore(trainable)
        student.train(training)


def sample_row(
    pipeline: DiffusionPipeline, prompts: Sequence[str], size: int, seed: int, steps: int, guidance_scale: float = 0.0
) -> list[Image.Image]:
    """One image of `size` pixels per prompt; prompt i starts from the noise of `seed + i`."""
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    return pipeline(
        list(prompts), num_inference_steps=steps, guidance_scale=guidance_scale, generator=generators, height=size,
        width=size,
    ).images  # fmt: skip


def sample_rows(
    accelerator: Accelerator, pipeline: DiffusionPipeline, prompts: Sequence[str], size: int, seed: int
) -> dict[str, list[Image.Image]]:
    """The student's rows of a grid by their labels, one for each of `VALIDATION_STEPS`."""
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad(), accelerator.autocast():
        return {
            f"{steps} step{'s' * (steps > 1)}": sample_row(pipeline, prompts, size, seed, steps)
            for steps in VALIDATION_STEPS
        }


def teacher_rows(
    accelerator: Accelerator, pipeline: DiffusionPipeline, prompts: Sequence[str], size: int, seed: int
) -> dict[str, list[Image.Image]]:
    """The teacher's row of a grid by its label, from the same noise as the student's rows."""
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad(), accelerator.autocast():
        row = sample_row(pipeline, prompts, size, seed, TEACHER_STEPS, TEACHER_GUIDANCE)
    return {f"teacher, {TEACHER_STEPS} steps": row}


def make_grid(rows: Mapping[str, Sequence[Image.Image]], prompts: Sequence[str]) -> Image.Image:
    """A labelled grid: one row of images per label, one column per prompt.

    Args:
        rows: images by the label that is written to their left, each as many as there are prompts, of one size.
        prompts: written above the columns, wrapped to their width.
    """
    first = next(iter(rows.values()))[0]
    scale = max(1, -(-CELL // first.width))
    width, height = first.width * scale, first.height * scale
    font = ImageFont.load_default(FONT_SIZE)
    letter = font.getlength("n")
    titles = ["\n".join(textwrap.wrap(prompt, max(8, int(width / letter)))) for prompt in prompts]
    left = int(max(font.getlength(label) for label in rows)) + 2 * GAP
    top = max(title.count("\n") + 1 for title in titles) * (FONT_SIZE + 4) + 2 * GAP
    size = (left + len(prompts) * (width + GAP), top + len(rows) * (height + GAP))
    grid = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(grid)
    for column, title in enumerate(titles):
        pen.multiline_text((left + column * (width + GAP), GAP), title, fill="black", font=font)
    for row, (label, images) in enumerate(rows.items()):
        y = top + row * (height + GAP)
        pen.text((GAP, y + height / 2), label, fill="black", font=font, anchor="lm")
        for column, image in enumerate(images):
            cell = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            grid.paste(cell, (left + column * (width + GAP), y))
    return grid


def save_grid(accelerator: Accelerator, grid: Image.Image, output_dir: str | Path, step: int) -> Path:
    """Write a grid to `output_dir/validation/step-N.png` and to the trackers. Returns the file."""
    path = Path(output_dir, "validation", f"step-{step}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        if hasattr(tracker, "log_images"):
            tracker.log_images({"validation": np.asarray(grid)[None]}, step=step, **layout)
    return path

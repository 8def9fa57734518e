"""Sample grids of the student while it trains, at 1, 2 and 4 steps, the same noise every time."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from PIL import Image
from torch import nn

VALIDATION_STEPS = (1, 2, 4)


@contextmanager
def averaged(student: nn.Module, ema: EMAModel | None) -> Iterator[nn.Module]:
    """`student` with its average's weights, in eval mode; afterwards as it was."""
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


def sample_grid(pipeline: DiffusionPipeline, prompts: list[str], size: int, seed: int) -> Image.Image:
    """One row a step count (1, 2, 4), one column a prompt; a column starts from the same noise in every row."""
    rows = []
    for steps in VALIDATION_STEPS:
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        rows += pipeline(prompts, num_inference_steps=steps, generator=generators, height=size, width=size).images
    return make_image_grid(rows, rows=len(VALIDATION_STEPS), cols=len(prompts))


def validate(
    accelerator: Accelerator, pipeline: DiffusionPipeline, args: argparse.Namespace, seed: int, step: int
) -> Path:
    """Write the grid to `output_dir/validation/step-N.png` and to the trackers. Returns the file."""
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad(), accelerator.autocast():
        grid = sample_grid(pipeline, args.validation_prompts, args.resolution, seed)
    path = Path(args.output_dir, "validation", f"step-{step}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        if hasattr(tracker, "log_images"):
            tracker.log_images({"validation": np.asarray(grid)[None]}, step=step, **layout)
    return path

"""Runs made by hand, without a pipeline: every image one colour of noise around a brightness."""

from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.runs.run import Run

PROMPTS = [f"a handwritten {word}" for word in ("zero", "one", "two", "three", "four", "five", "six", "seven")]


def make_run(
    folder: Path, brightness: int, images_per_prompt: int = 1, prompts: list[str] = PROMPTS, **manifest
) -> Run:
    """A whole run of 32 x 32 images."""
    settings = {"name": folder.name, "images_per_prompt": images_per_prompt, "seed": 5, "call": {}, **manifest}
    run = Run.start(folder, settings, prompts)
    for shot in run.shots:
        noise = np.random.default_rng(shot.seed).integers(-40, 40, (32, 32, 3))
        run.save(shot, Image.fromarray((noise + brightness).clip(0, 255).astype(np.uint8)))
    return run

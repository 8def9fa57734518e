"""An untrained tiny world in the layout that `examples.tiny.build` leaves, for what measures in one."""

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BitImageProcessor

from examples.tiny.data import Example, write_split
from examples.tiny.models import make_classifier
from tests.support.tiny_world import CAPTIONS

LABELS = [caption.split()[-1] for caption in CAPTIONS]


def make_tiny_dir(world: Path, folder: Path) -> Path:
    """The networks of `world` with labelled splits of 16 and 8 images and an evaluator. Returns `folder`."""
    for part in ("teacher", "feature_network", "clip"):
        shutil.copytree(world / part, folder / part)
    torch.manual_seed(0)
    make_classifier(LABELS, width=32, layers=1).save_pretrained(folder / "evaluator")
    BitImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder / "evaluator")
    generator = np.random.default_rng(0)
    examples = [
        Example(Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)), caption, label)
        for caption, label in list(zip(CAPTIONS, LABELS)) * 3
    ]
    write_split(folder / "data" / "train", examples[:16])
    write_split(folder / "data" / "test", examples[16:])
    return folder

"""The tiny world's captioned images in memory."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

COLUMNS = ("file_name", "text", "label")  # any other column of metadata.jsonl is an attribute


@dataclass(frozen=True)
class Split:
    """One half of the data in memory: `pixels (N, 3, H, H)` in [-1, 1], N captions and labels, and for each attribute
    N values."""

    pixels: torch.Tensor
    captions: list[str]
    labels: list[str]
    attributes: dict[str, list[str]] = field(default_factory=dict)


def read_split(folder: Path) -> Split:
    """What `examples.tiny.data.write_split` wrote, as tensors. Where rows have no label, the caption is the label."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    images = np.stack([np.asarray(Image.open(folder / row["file_name"])) for row in rows])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()
    attributes = {name: [row[name] for row in rows] for name in rows[0] if name not in COLUMNS}
    return Split(pixels, [row["text"] for row in rows], [row.get("label", row["text"]) for row in rows], attributes)

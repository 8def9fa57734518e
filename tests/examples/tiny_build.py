"""A small image folder, and the builder run on it with hardly an iteration, for the tests of the tiny world."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from examples.tiny import build as builder

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 210)}


def write_folder(folder: Path, count: int = 30, text: bool = True, label: bool = True) -> Path:
    """An image folder of coloured squares, one of them RGBA and one not square."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(count):
        name = list(COLOURS)[i % 3]
        image = np.zeros((40, 40, 3), np.uint8)
        image[4 + i % 7 : 20 + i % 11, 8:30] = COLOURS[name]
        picture = Image.fromarray(image).convert("RGBA" if i == 1 else "RGB").resize((80 if i == 2 else 40, 40))
        picture.save(folder / f"{i}.png")
        row = {"file_name": f"{i}.png"}
        row |= {"text": f"a {name} square"} if text else {}
        row |= {"label": name} if label else {}
        rows.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def run(output_dir: Path, folder: Path, *more: str) -> dict:
    """Build with one iteration a stage, which reaches no gate; returns build.json."""
    flags = ["--output_dir", str(output_dir), "--train_data_dir", str(folder), "--iterations_scale", "0.001"]
    flags += ["--max_rounds", "1", "--gates", "report", *more]
    builder.main(flags)
    return json.loads((output_dir / "build.json").read_text())

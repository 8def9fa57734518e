"""Write the showcase's pictures as image folders.

    python -m examples.showcase.write --output_dir build/showcase

leaves `train/`, `test/` and `held_out/` in the output folder, each with PNG files of 64 x 64 pixels and a
`metadata.jsonl` that `datasets.load_dataset("imagefolder", data_dir=...)` reads. Its columns are `file_name`, the
caption `text`, and one for each attribute of `Scene`, for evaluation. `held_out/` has only combinations that neither
`train/` nor `test/` contains. The same seed gives the same bytes; a folder that is whole is kept.
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from examples.showcase.objects import ATTRIBUTION, load_sprite
from examples.showcase.render import render
from examples.showcase.scenes import NAMES, describe, draw_scene_of
from training.command import command_name

COUNTS = {"train": 12000, "test": 1500, "held_out": 1500}
README = f"""# Showcase pictures

Emoji on coloured backgrounds with composed captions, drawn by `python -m examples.showcase.write`.

{ATTRIBUTION}
"""


def write_folder(folder: Path, name: str, count: int, seed: int) -> None:
    """Write `count` pictures of the split `name` in `folder`, which does not exist yet."""
    folder.mkdir(parents=True)
    rows = []
    for i in tqdm(range(count), desc=name, unit="picture"):
        # Every picture has random numbers of its own: a larger split begins with the smaller one's pictures.
        rng = random.Random(f"{seed} {name} {i}")
        scene = draw_scene_of(name == "held_out", rng)
        row = {"file_name": f"{i:05d}.png", "text": describe(scene, rng), **asdict(scene)}
        render(scene, rng).save(folder / row["file_name"])
        rows.append(json.dumps(row) + "\n")
    (folder / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")


def recipe_hash(count: int, seed: int) -> str:
    """Changes with the code that draws, and with what it is asked for."""
    folder = Path(__file__).parent
    code = b"".join((folder / f"{name}.py").read_bytes() for name in ("objects", "scenes", "render", "write"))
    return hashlib.sha256(code + f"{count} {seed}".encode()).hexdigest()


def write(output_dir: Path, counts: dict[str, int], seed: int) -> None:
    """Write every split that is not there yet, each aside first, so that none is ever half-written.

    Raises:
        ModuleNotFoundError: the artwork is not installed.
        ValueError: `output_dir` holds something else under the name of a split.
    """
    for name in NAMES:
        load_sprite(name)
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, count in counts.items():
        folder, partial = output_dir / name, output_dir / f".{name}.partial"
        record = folder / "recipe.sha256"
        if folder.exists():
            if not record.is_file():
                raise ValueError(f"--output_dir {output_dir}: {folder} was not written by this command; remove it")
            if record.read_text() == recipe_hash(count, seed):
                print(f"{name}: found in {folder}", flush=True)
                continue
        shutil.rmtree(partial, ignore_errors=True)
        write_folder(partial, name, count, seed)
        (partial / record.name).write_text(recipe_hash(count, seed))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    (output_dir / "README.md").write_text(README, encoding="utf-8")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=command_name("examples.showcase.write"),
        description="Draw the showcase's captioned pictures: emoji, one or two in a picture, on coloured backgrounds.",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder to write in.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything random. Default: 0.")
    for name, count in COUNTS.items():
        text = f"How many pictures {name} has. Default: {count}."
        parser.add_argument(f"--num_{name}", type=int, default=count, help=text)
    args = parser.parse_args(argv)
    for name in COUNTS:
        if getattr(args, f"num_{name}") < 1:
            parser.error(f"--num_{name} must be 1 or more, got {getattr(args, f'num_{name}')}")
    return args


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    try:
        write(args.output_dir, {name: getattr(args, f"num_{name}") for name in COUNTS}, args.seed)
    except (ModuleNotFoundError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Reading of the real images for a comparison, from a folder or an image column of a data set."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from PIL import Image, ImageOps

from evaluation.errors import EvaluationError
from evaluation.generation.prompts import load_split

ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}


def find_images(folder: Path, count: int | None = None) -> list[Path]:
    """The first `count` image files in `folder` and its subfolders, sorted by path; None for all.

    Raises:
        EvaluationError: the folder does not exist, or contains fewer than 2 or fewer than `count` images.
    """
    if not folder.is_dir():
        raise EvaluationError(f"--reference {folder}: there is no such folder; give a folder of real images.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    needed = max(2, count or 0)
    if len(files) < needed:
        raise EvaluationError(
            f"--reference {folder}: there are {len(files)} images ({', '.join(sorted(ENDINGS))}), but {needed} are "
            "needed."
        )
    return files[:count]


def read_images(files: list[Path], size: tuple[int, int]) -> Iterator[Image.Image]:
    """Read RGB images, each center-cropped and resized (Lanczos) to `size` (width, height).

    Raises:
        EvaluationError: a file is damaged.
    """
    for file in files:
        try:
            with Image.open(file) as image:
                yield ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), size, Image.Resampling.LANCZOS)
        except (OSError, SyntaxError) as error:
            raise EvaluationError(f"--reference: {file} cannot be read: {error}") from error


def export_dataset(name: str, config: str | None, split: str, image_column: str, cache: Path) -> Path:
    """Write an image column of a data set to a subfolder of `cache`, once. Returns the subfolder.

    Raises:
        EvaluationError: the split or column does not exist.
    """
    import datasets

    rows = load_split(name, config, split)
    if image_column not in rows.column_names:
        raise EvaluationError(f"--image_column {image_column}: {name} has {', '.join(rows.column_names)}.")
    rows = rows.select_columns([image_column]).cast_column(image_column, datasets.Image())
    folder = cache / rows._fingerprint  # changes with the data set's content, split and column
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for index, row in enumerate(rows):
            cast(dict[str, Any], row)[image_column].convert("RGB").save(folder / f"{index:06}.png")
        (folder / "complete").touch()
    return folder

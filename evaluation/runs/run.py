"""A run: a folder with the images that a pipeline generated for a list of prompts, and a manifest of its settings.

    RUN/run.json         the pipeline, its arguments, a fingerprint of the prompts, and the generated size
    RUN/prompts.json     the prompts
    RUN/images/          00012-3.png: prompt 12, seed 3
    RUN/speed.json       seconds and memory of one image
    RUN/metrics.json     output of `measure`

All files are written atomically, so files with their final names are complete, and a killed run can be continued.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from evaluation.errors import EvaluationError
from evaluation.runs.files import write_atomically, write_json

MANIFEST = "run.json"
DRAWN_SIZE = "drawn_size"  # key in the manifest; only known after the first image


@dataclass(frozen=True)
class Shot:
    """One image of a run.

    Attributes:
        prompt_index: index of the prompt in the run's list.
        repeat: 0 for the first image of the prompt. Distances and scores only use these; diversity uses all images.
        prompt: text of the prompt.
        seed: seed of the image's generator.
    """

    prompt_index: int
    repeat: int
    prompt: str
    seed: int

    @property
    def file_name(self) -> str:
        """File name of the image, made from prompt index and seed."""
        return f"{self.prompt_index:05}-{self.seed}.png"


def plan_shots(prompts: list[str], images_per_prompt: int, seed: int) -> list[Shot]:
    """List all images of a run: first one image for each prompt, then the second image for each prompt, and so on.

    The seed of an image is `seed + number of the image`, so runs over the same prompts use the same seeds.
    """
    return [
        Shot(i, repeat, prompt, seed + repeat * len(prompts) + i)
        for repeat in range(images_per_prompt)
        for i, prompt in enumerate(prompts)
    ]


class Run:
    """The folder of a run.

    Attributes:
        folder: path of the folder.
        manifest: content of `run.json`.
        prompts: texts of the prompts, in order.
        shots: all images of the run, whether they exist already or not.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], prompts: list[str]):
        self.folder = folder
        self.manifest = manifest
        self.prompts = prompts
        self.shots = plan_shots(prompts, manifest["images_per_prompt"], manifest["seed"])

    @classmethod
    def start(cls, folder: Path, manifest: Mapping[str, Any], prompts: list[str]) -> "Run":
        """Start a run, or continue the one in `folder`.

        Args:
            folder: folder of the run, created if necessary.
            manifest: all settings that the images depend on, as JSON, with `name`, `images_per_prompt` and `seed`.
            prompts: texts of the prompts.

        Raises:
            EvaluationError: the folder contains another run; the message shows the differences.
        """
        wanted: dict[str, Any] = json.loads(json.dumps({**manifest, "prompts_sha256": fingerprint(prompts)}))
        if (folder / MANIFEST).exists():
            there = cls.open(folder).manifest
            _refuse_other(folder, there, wanted)
            return cls(folder, there, prompts)
        try:
            (folder / "images").mkdir(parents=True, exist_ok=True)
            write_json(folder / "prompts.json", prompts)
            write_json(folder / MANIFEST, wanted)
        except OSError as error:
            raise EvaluationError(f"--output_dir {folder}: {error.strerror}; give a writable folder.") from error
        return cls(folder, wanted, prompts)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Open an existing run.

        Raises:
            EvaluationError: the folder is not a run, or its prompts were changed.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EvaluationError(
                f"{folder} is not a run ({error}). Make one with `python -m evaluation generate`."
            ) from error
        if fingerprint(prompts) != manifest.get("prompts_sha256"):
            raise EvaluationError(f"{folder}: prompts.json was changed after the run was started.")
        return cls(folder, manifest, prompts)

    @property
    def name(self) -> str:
        """Name of the run in tables."""
        return self.manifest["name"]

    @property
    def drawn_size(self) -> tuple[int, int] | None:
        """Width and height in pixels of the generated images before resizing; None if there are no images yet."""
        size = self.manifest.get(DRAWN_SIZE)
        return tuple(size) if size else None

    @property
    def saved_size(self) -> tuple[int, int]:
        """Width and height in pixels of the saved images, read from the first one."""
        return self.load(self.shots[0]).size

    def record_drawn_size(self, size: tuple[int, int]) -> None:
        """Store the width and height in pixels of the generated images in `run.json`.

        Raises:
            EvaluationError: earlier images of the run have another size.
        """
        if self.drawn_size == size:
            return
        if self.drawn_size is not None:
            raise EvaluationError(
                f"{self.folder}: the pipeline now generates {format_size(size)} pixels, but the run was started with "
                f"{format_size(self.drawn_size)}. Give --height and --width, and a new --output_dir."
            )
        self.manifest[DRAWN_SIZE] = list(size)
        write_json(self.folder / MANIFEST, self.manifest)

    def path(self, shot: Shot) -> Path:
        """Path of an image, whether it exists already or not."""
        return self.folder / "images" / shot.file_name

    def missing(self) -> list[Shot]:
        """The images that do not exist yet."""
        return [shot for shot in self.shots if not self.path(shot).exists()]

    def save(self, shot: Shot, image: Image.Image) -> None:
        """Save an image as PNG."""
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        write_atomically(self.path(shot), buffer.getvalue())

    def load(self, shot: Shot) -> Image.Image:
        """Read an image as RGB.

        Raises:
            EvaluationError: the image is missing or damaged.
        """
        try:
            with Image.open(self.path(shot)) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
            raise EvaluationError(f"{self.path(shot)}: {error}. Delete it and run `generate` again.") from error

    def read(self, name: str) -> dict[str, Any] | None:
        """Content of a JSON file of the run, such as `metrics.json`; None if it does not exist yet.

        Raises:
            EvaluationError: the file is not JSON.
        """
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except ValueError as error:
            raise EvaluationError(f"{path} is not JSON ({error}). Delete it and measure the run again.") from error

    def require_complete(self) -> None:
        """Raise an EvaluationError if images are missing."""
        if missing := len(self.missing()):
            raise EvaluationError(
                f"{self.folder}: {missing} of {len(self.shots)} images are missing; run its `generate` command again."
            )


def open_comparable(folders: list[Path], allow_different_sizes: bool = False) -> list[Run]:
    """Open complete runs over the same prompts and seeds.

    Args:
        folders: folders of the runs.
        allow_different_sizes: whether saved images may have different sizes. The size affects all metrics, and in a
            preference study it reveals the run of an image.

    Raises:
        EvaluationError: a run is not complete, two runs have the same name, or prompts, seeds or sizes differ.
    """
    runs = [Run.open(folder) for folder in folders]
    for run in runs:
        run.require_complete()
        if (run.prompts, run.manifest["seed"]) != (runs[0].prompts, runs[0].manifest["seed"]):
            raise EvaluationError(
                f"{run.folder} and {runs[0].folder} differ in prompts or seed, so they cannot be compared. Generate "
                "both from the same --prompts, --num_prompts, --prompt_seed and --seed."
            )
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise EvaluationError(f"two runs have the same --name: {', '.join(sorted(names))}.")
    sizes = {run.name: format_size(run.saved_size) for run in runs}
    if len(set(sizes.values())) > 1 and not allow_different_sizes:
        raise EvaluationError(
            f"the runs have images of different sizes ({', '.join(f'{name}: {size}' for name, size in sizes.items())} "
            "pixels). Generate them with one --height, --width and --resolution, or pass --allow_different_sizes to "
            "`compare`."
        )
    return runs


def format_size(size: tuple[int, int] | None) -> str:
    """E.g. `512x768` for width 512 and height 768; a dash if unknown."""
    return f"{size[0]}x{size[1]}" if size else "-"


def fingerprint(prompts: list[str]) -> str:
    """SHA-256 of a list of prompts, in hexadecimal."""
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def _refuse_other(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [key for key in sorted(old.keys() | new.keys()) if key != DRAWN_SIZE and old.get(key) != new.get(key)]
    if changed:
        differences = "; ".join(f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in changed)
        raise EvaluationError(f"--output_dir {folder} contains another run; give another one. Changed: {differences}.")

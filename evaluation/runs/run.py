"""A run: the folder of images that one pipeline drew for a list of prompts, with a manifest of how.

    RUN/run.json         the pipeline, its arguments, a fingerprint of the prompts, and the size that was drawn
    RUN/prompts.json     the prompts
    RUN/images/          00012-3.png: prompt 12, seed 3
    RUN/speed.json       seconds and memory of one image
    RUN/metrics.json     what `measure` found

Every file is written aside, forced to the disk and renamed: a file under its final name is whole, so a generation that
was killed continues where it was.
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
DRAWN_SIZE = "drawn_size"  # of the manifest; known after the first image only


@dataclass(frozen=True)
class Shot:
    """One image to draw.

    Attributes:
        prompt_index: index of the prompt in the run's list.
        repeat: 0 for the prompt's first image. Distances and scores use these alone; diversity uses all.
        prompt: the text.
        seed: of the image's own generator.
    """

    prompt_index: int
    repeat: int
    prompt: str
    seed: int

    @property
    def file_name(self) -> str:
        """Name of the image, by prompt and seed."""
        return f"{self.prompt_index:05}-{self.seed}.png"


def plan_shots(prompts: list[str], images_per_prompt: int, seed: int) -> list[Shot]:
    """All images of a run: first one for every prompt, then the second of every prompt, and so on.

    Every image has a seed of its own, `seed + number of the image`, so runs over the same prompts share them.
    """
    return [
        Shot(i, repeat, prompt, seed + repeat * len(prompts) + i)
        for repeat in range(images_per_prompt)
        for i, prompt in enumerate(prompts)
    ]


class Run:
    """A run's folder.

    Attributes:
        folder: its path.
        manifest: content of `run.json`.
        prompts: the texts, in order.
        shots: the images that it consists of, drawn or not.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], prompts: list[str]):
        self.folder = folder
        self.manifest = manifest
        self.prompts = prompts
        self.shots = plan_shots(prompts, manifest["images_per_prompt"], manifest["seed"])

    @classmethod
    def start(cls, folder: Path, manifest: Mapping[str, Any], prompts: list[str]) -> "Run":
        """Begin a run, or continue the one that is in `folder`.

        Args:
            folder: made if it does not exist.
            manifest: JSON values that say all an image depends on; with `name`, `images_per_prompt` and `seed`.
            prompts: texts to draw.

        Raises:
            EvaluationError: the folder holds another run; the message shows the difference.
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
            raise EvaluationError(
                f"--output_dir {folder}: {error.strerror}; give a folder that can be written."
            ) from error
        return cls(folder, wanted, prompts)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Open a run to read it.

        Raises:
            EvaluationError: there is none, or its prompts are not those it was made with.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EvaluationError(
                f"{folder} is not a run ({error}). Make one with `python -m evaluation generate`."
            ) from error
        if fingerprint(prompts) != manifest.get("prompts_sha256"):
            raise EvaluationError(f"{folder}: prompts.json was changed after the images were begun.")
        return cls(folder, manifest, prompts)

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.manifest["name"]

    @property
    def drawn_size(self) -> tuple[int, int] | None:
        """Width and height in pixels as the pipeline drew them, before any reduction; None if no image was drawn."""
        size = self.manifest.get(DRAWN_SIZE)
        return tuple(size) if size else None

    @property
    def saved_size(self) -> tuple[int, int]:
        """Width and height in pixels of the images as they are saved, read from the first one."""
        return self.load(self.shots[0]).size

    def record_drawn_size(self, size: tuple[int, int]) -> None:
        """Keep in `run.json` the width and height in pixels that the pipeline drew.

        Raises:
            EvaluationError: earlier images of the run were drawn at another size.
        """
        if self.drawn_size == size:
            return
        if self.drawn_size is not None:
            raise EvaluationError(
                f"{self.folder}: the pipeline draws {format_size(size)} pixels now, but the run began with "
                f"{format_size(self.drawn_size)}. Give --height and --width in a new --output_dir."
            )
        self.manifest[DRAWN_SIZE] = list(size)
        write_json(self.folder / MANIFEST, self.manifest)

    def path(self, shot: Shot) -> Path:
        """The file of an image, drawn or not."""
        return self.folder / "images" / shot.file_name

    def missing(self) -> list[Shot]:
        """The images that are still to be drawn."""
        return [shot for shot in self.shots if not self.path(shot).exists()]

    def save(self, shot: Shot, image: Image.Image) -> None:
        """Keep an image as PNG."""
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        write_atomically(self.path(shot), buffer.getvalue())

    def load(self, shot: Shot) -> Image.Image:
        """Read an image as RGB.

        Raises:
            EvaluationError: it is absent or damaged.
        """
        try:
            with Image.open(self.path(shot)) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError) as error:  # Pillow's decoders call a broken PNG a syntax error
            raise EvaluationError(f"{self.path(shot)}: {error}. Delete it and run `generate` again.") from error

    def read(self, name: str) -> dict[str, Any] | None:
        """Content of a JSON file of the run, such as `metrics.json`; None if there is none yet.

        Raises:
            EvaluationError: the file is not JSON.
        """
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except ValueError as error:
            raise EvaluationError(f"{path} is not JSON ({error}). Delete it and measure the run again.") from error

    def require_complete(self) -> None:
        """Raises: EvaluationError: images are missing."""
        if missing := len(self.missing()):
            raise EvaluationError(
                f"{self.folder}: {missing} of {len(self.shots)} images are missing; run its `generate` command again."
            )


def open_comparable(folders: list[Path], allow_different_sizes: bool = False) -> list[Run]:
    """Open complete runs over the same prompts and seeds.

    Args:
        folders: of the runs.
        allow_different_sizes: accept saved images of different sizes. How large an image is changes every metric, and
            in a preference study shows which run is which.

    Raises:
        EvaluationError: a run is not complete, two have one name, or prompts, seeds or sizes differ.
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
        raise EvaluationError(f"--output_dir {folder} holds another run; give another folder. Changed: {differences}.")

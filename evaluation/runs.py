"""A run: the folder of images that one pipeline drew for a list of prompts, with a manifest of how.

    RUN/run.json         who drew, with which arguments, and a fingerprint of the prompts; written last
    RUN/prompts.json     the prompts
    RUN/images/          00012-3.png: prompt 12, seed 3
    RUN/speed.json       seconds and memory of one image
    RUN/metrics.json     what `measure` found

Every file is written aside, forced to the disk and renamed: one that stands under its name is whole, so a killed
generation goes on where it was.
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from evaluation.errors import EvaluationError

MANIFEST = "run.json"


@dataclass(frozen=True)
class Shot:
    """One image to draw.

    Attributes:
        prompt_index: place of the prompt in the run's list.
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


def write_aside(path: Path, data: bytes) -> None:
    """Write a file so that it is whole or absent, whenever the process or the machine dies."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people to read, whole or not at all."""
    write_aside(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


class Run:
    """A run's folder.

    Attributes:
        folder: where it lies.
        manifest: content of `run.json`.
        shots: what it consists of, drawn or not.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], prompts: list[str]):
        self.folder = folder
        self.manifest = manifest
        self.prompts = prompts
        self.shots = plan_shots(prompts, manifest["images_per_prompt"], manifest["seed"])

    @classmethod
    def start(cls, folder: Path, manifest: Mapping[str, Any], prompts: list[str]) -> "Run":
        """Begin a run, or go on with the one that lies in `folder`.

        Args:
            folder: made if need be.
            manifest: JSON values that say all an image depends on; with `name`, `images_per_prompt` and `seed`.
            prompts: texts to draw.

        Raises:
            EvaluationError: another run lies there; the message shows the difference.
        """
        manifest = json.loads(json.dumps({**manifest, "prompts_sha256": fingerprint(prompts)}))
        if (folder / MANIFEST).exists():
            _refuse_other(folder, cls.open(folder).manifest, manifest)
        else:
            (folder / "images").mkdir(parents=True, exist_ok=True)
            write_json(folder / "prompts.json", prompts)
            write_json(folder / MANIFEST, manifest)
        return cls(folder, manifest, prompts)

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
                f"{folder} is no run: {error}. Make one with `python -m evaluation generate`."
            ) from error
        if fingerprint(prompts) != manifest.get("prompts_sha256"):
            raise EvaluationError(f"{folder}: prompts.json was changed after the images were begun.")
        return cls(folder, manifest, prompts)

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.manifest["name"]

    def path(self, shot: Shot) -> Path:
        """Where an image lies or will lie."""
        return self.folder / "images" / shot.file_name

    def missing(self) -> list[Shot]:
        """What is still to be drawn."""
        return [shot for shot in self.shots if not self.path(shot).exists()]

    def save(self, shot: Shot, image: Image.Image) -> None:
        """Keep an image as PNG."""
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        write_aside(self.path(shot), buffer.getvalue())

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
        """Content of a JSON file of the run, such as `metrics.json`; None if there is none yet."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def require_complete(self) -> None:
        """Raises: EvaluationError: images are missing."""
        if missing := len(self.missing()):
            raise EvaluationError(
                f"{self.folder}: {missing} of {len(self.shots)} images are missing; run its `generate` command again."
            )


def open_comparable(folders: list[Path]) -> list[Run]:
    """Open whole runs over the same prompts and seeds.

    Raises:
        EvaluationError: a run is not whole, two have one name, or prompts or seeds differ.
    """
    runs = [Run.open(folder) for folder in folders]
    for run in runs:
        run.require_complete()
        if (run.prompts, run.manifest["seed"]) != (runs[0].prompts, runs[0].manifest["seed"]):
            raise EvaluationError(f"{run.folder} and {runs[0].folder} differ in prompts or seed: nothing to compare.")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise EvaluationError(f"two runs have the same --name: {', '.join(sorted(names))}.")
    return runs


def fingerprint(prompts: list[str]) -> str:
    """SHA-256 of a list of prompts."""
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def _refuse_other(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if changed:
        lines = "".join(f"\n  {key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in changed)
        raise EvaluationError(f"--output_dir {folder} holds another run; give another folder. It differs in{lines}")

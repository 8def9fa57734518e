"""`build.json`: the records of all stages with their inputs, file hashes and results.

The folder of a stage is only used if its record has the same inputs and file hashes; otherwise the stage is rebuilt in
a temporary folder that replaces the old one when it is complete.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

NAME = "build.json"


@dataclass
class Manifest:
    """The records of the stages in `root`, stored in `root/build.json`."""

    root: Path
    arguments: dict = field(default_factory=dict)
    stages: dict[str, dict] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path, arguments: dict) -> "Manifest":
        """Read the records in `root`, or start new ones.

        Raises:
            ValueError: `root` contains files that were not written by a build.
        """
        path = root / NAME
        if path.exists():
            try:
                stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
            except (ValueError, KeyError) as error:
                raise ValueError(f"--output_dir {root}: {NAME} is damaged ({error}); remove the folder") from error
            return cls(root, arguments, stages)
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise ValueError(
                f"--output_dir {root}: the folder is not empty and has no {NAME} of a build; give a new folder"
            )
        root.mkdir(parents=True, exist_ok=True)
        manifest = cls(root, arguments)
        manifest.save()
        return manifest

    def save(self) -> None:
        """Replace `build.json` atomically."""
        partial = self.root / f".{NAME}.partial"
        content = {"arguments": self.arguments, "stages": self.stages}
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.root / NAME)

    def digest(self, name: str) -> str:
        """A hash of the recorded hashes of all files of stage `name`."""
        files = json.dumps(self.stages[name]["sha256"], sort_keys=True)
        return hashlib.sha256(files.encode()).hexdigest()

    def stale(self, name: str, inputs: dict, ignored: Collection[str] = ()) -> str | None:
        """The reason why the folder of stage `name` cannot be used for `inputs`, or None if it can be used. Inputs in
        `ignored` may differ."""
        record = self.stages.get(name)
        if record is None:
            return "not built yet"
        changed = [k for k in {**record["inputs"], **inputs} if record["inputs"].get(k) != inputs.get(k)]
        if changed := [k for k in changed if k not in ignored]:
            return f"{', '.join(changed)} changed"
        found = hash_files(self.root / name)
        if found != record["sha256"]:
            changed = [k for k in {**found, **record["sha256"]} if found.get(k) != record["sha256"].get(k)]
            return f"missing, added or damaged: {', '.join(changed)}"
        return None

    def ensure(self, name: str, inputs: dict, build: Callable[[Path], dict], ignored: Collection[str] = ()) -> None:
        """Build stage `name` in `root/name` with `build(folder)`, which returns measured quality, unless it exists."""
        partial = self.root / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        reason = self.stale(name, inputs, ignored)
        if reason is None:
            print(f"{name}: found in {self.root / name}", flush=True)
            return
        print(f"{name}: building ({reason})", flush=True)
        start = time.perf_counter()
        partial.mkdir()
        quality = build(partial)
        shutil.rmtree(self.root / name, ignore_errors=True)
        partial.rename(self.root / name)
        self.stages[name] = {
            "inputs": inputs,
            "quality": quality,
            "seconds": round(time.perf_counter() - start, 1),
            "sha256": hash_files(self.root / name),
        }
        self.save()
        figures = ", ".join(f"{key} {value:.4g}" for key, value in quality.items())
        print(f"{name}: {figures} ({self.stages[name]['seconds']} s)", flush=True)


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 hashes of all files in `folder` and its subfolders, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

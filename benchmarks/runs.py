"""Measured runs, each in a separate process so that its memory can be measured, and the project's targets."""

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.architectures import MEMORY, RECIPES

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Run:
    """One measured run: model, recipe, and `flags` of the training script in addition to those of the recipe."""

    model: str
    resolution: int
    recipe: str
    batch: int
    flags: tuple[str, ...] = ()

    def command(self, iterations: int, warmup: int, world: Path) -> list[str]:
        """Arguments of `python` for measuring this run."""
        return [
            "-m", "benchmarks.full_size", "run", "--model", self.model, "--resolution", str(self.resolution),
            "--recipe", self.recipe, "--batch", str(self.batch), "--iterations", str(iterations),
            "--warmup", str(warmup), "--world", str(world), *self.flags,
        ]  # fmt: skip

    def is_of(self, row: dict) -> bool:
        """Whether `row` has the figures of this run."""
        mine = (self.model, self.resolution, self.recipe, self.batch, " ".join(self.flags))
        return mine == tuple(row.get(key) for key in ("model", "resolution", "recipe", "batch", "flags"))


# The runs that the targets need come first.
RUNS = (
    Run("sdxl", 512, "C+LoRA", 1, MEMORY),
    Run("sdxl", 512, "C", 1, MEMORY),
    *(Run("sdxl", 512, recipe, 4) for recipe in RECIPES),
    *(Run("sd15", 512, recipe, 8) for recipe in RECIPES),
    Run("sd21", 512, "C", 8),
    Run("sdxl", 1024, "C", 1, MEMORY),
    Run("sdxl", 1024, "C+LoRA", 1, MEMORY),
    Run("sdxl", 512, "C+LoRA", 1, (*MEMORY, "--teacher_precision", "4bit")),
    Run("sdxl", 512, "C+LoRA", 1, (*MEMORY, "--teacher_precision", "8bit")),
)


def measure(run: Run, iterations: int, warmup: int, world: Path) -> dict:
    """Measure `run`. Returns its figures, or its exit status as `failed`."""
    command = run.command(iterations, warmup, world)
    print("python " + " ".join(command), flush=True)
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"  failed with status {done.returncode}", flush=True)
        return {
            "model": run.model, "resolution": run.resolution, "recipe": run.recipe, "batch": run.batch,
            "flags": " ".join(run.flags), "failed": done.returncode,
        }  # fmt: skip
    row = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {row['milliseconds']:.0f} ms, {row['peak_gib']:.1f} GiB", flush=True)
    return row


def measure_all(device: str, iterations: int, warmup: int, world: Path, results: Path) -> list[dict]:
    """Measure all runs in `RUNS`, and save each result. A repeated call continues with missing and failed runs."""
    path = results / f"{file_name(device)}.json"
    rows = [row for row in load(path) if "failed" not in row]
    for run in RUNS:
        if not any(run.is_of(row) for row in rows):
            rows.append(measure(run, iterations, warmup, world))
            save(path, rows)
    return rows


def file_name(device: str) -> str:
    """Convert the name of a device to a file name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def load(path: Path) -> list[dict]:
    """Read saved figures; empty if there are none."""
    return json.loads(path.read_text()) if path.is_file() else []


def save(path: Path, rows: list[dict]) -> None:
    """Write figures atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(rows, indent=1) + "\n")
    os.replace(part, path)


def compare(first: Run, second: Run, rounds: int, iterations: int, warmup: int, world: Path) -> dict:
    """Compare the speed of `second` and `first`: measure both alternately `rounds` times, and take the median ratio.

    Raises:
        RuntimeError: one of them failed.
    """
    rows: list[dict] = []
    for i in range(rounds):
        for run in (first, second) if i % 2 == 0 else (second, first):
            rows.append(measure(run, iterations, warmup, world))
            if "failed" in rows[-1]:
                raise RuntimeError(f"{run} failed, so the runs cannot be compared")
    slow, fast = ([row["images_per_second"] for row in rows if run.is_of(row)] for run in (first, second))
    ratios = [b / a for a, b in zip(slow, fast)]
    return {"speed": statistics.median(ratios), "ratios": ratios, "rows": rows}


@dataclass(frozen=True)
class Aim:
    """A target: `find` computes its figure from the rows, and returns None if it was not measured."""

    title: str
    bound: float
    is_limit: bool  # whether the figure must be below the bound instead of reaching it
    find: Callable[[Sequence[dict]], float | None]

    def verdict(self, rows: Sequence[dict]) -> str:
        """Describe the target and whether it is met, in one line."""
        value, relation = self.find(rows), "under" if self.is_limit else "at least"
        if value is None:
            return f"{self.title}: {relation} {self.bound:g}: not measured"
        is_met = value < self.bound if self.is_limit else value >= self.bound
        return f"{self.title}: {relation} {self.bound:g}: {value:.2f}, {'met' if is_met else 'MISSED'}"


def _figure(rows: Iterable[dict], run: Run, key: str) -> float | None:
    return next((row[key] for row in rows if run.is_of(row) and key in row), None)


def _speedup(model: str, batch: int) -> Callable[[Sequence[dict]], float | None]:
    def find(rows: Sequence[dict]) -> float | None:
        a, c = (_figure(rows, Run(model, 512, recipe, batch), "images_per_second") for recipe in "AC")
        return None if a is None or c is None else c / a

    return find


def _best_share(rows: Sequence[dict]) -> float | None:
    return max((row["share_of_matrix_rate"] for row in rows if "share_of_matrix_rate" in row), default=None)


AIMS = (
    Aim("SDXL at 512, LoRA, batch 1: GiB", 16, True, lambda rows: _figure(rows, RUNS[0], "peak_gib")),
    Aim("SDXL at 512, all weights, batch 1: GiB", 40, True, lambda rows: _figure(rows, RUNS[1], "peak_gib")),
    Aim("SDXL, speed of recipe C over A", 1.6, False, _speedup("sdxl", 4)),
    Aim("SD 1.5, speed of recipe C over A", 2.0, False, _speedup("sd15", 8)),
    Aim("share of the measured bf16 matrix rate, best run", 0.4, False, _best_share),
)

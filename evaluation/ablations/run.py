"""Runs the ablations: trains and measures each row and seed in its own folder.

    OUT/runs/loss-sds/seed-0/run.json        the command, written first
    OUT/runs/loss-sds/seed-0/student/        the published student, checkpoints and logs
    OUT/runs/loss-sds/seed-0/train.log       output of the training
    OUT/runs/loss-sds/seed-0/metrics.json    figures by number of sampling steps, written last

If a run has `metrics.json`, it is trained, and only missing figures are measured. A killed run is resumed from its last
checkpoint.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from evaluation.ablations.recipe import merge_flags
from evaluation.ablations.tables import COMMON, AblationRow
from evaluation.ablations.worlds import Figures, Launch, World, missing_for
from evaluation.errors import EvaluationError
from evaluation.runs.run import write_json

CHECKPOINTS = 3  # per run, so that a kill costs at most a third of a run


@dataclass(frozen=True)
class Job:
    """The training of a row with one seed: its folder and its exact command."""

    row: AblationRow
    seed: int
    folder: Path
    command: tuple[str, ...]

    @property
    def student(self) -> Path:
        """Output folder of the training script."""
        return self.folder / "student"


def plan_jobs(
    rows: Iterable[AblationRow],
    world: World,
    seeds: list[int],
    recipe: list[str],
    steps: int,
    out: Path,
    launcher: list[str],
) -> list[Job]:
    """The jobs of all rows for which `world` has the networks. A run that several tables share is listed once."""
    unique = {row.run: row for row in rows if missing_for(world, row) is None}
    return [_job(row, seed, world, recipe, steps, out, launcher) for row in unique.values() for seed in seeds]


def _job(
    row: AblationRow, seed: int, world: World, recipe: list[str], steps: int, out: Path, launcher: list[str]
) -> Job:
    folder = out / "runs" / row.run / f"seed-{seed}"
    named = {f"{{{name}}}": value for name, value in world.networks.items()}
    own = [named.get(word, word) for word in (*COMMON, *row.flags)]
    length = [
        "--max_train_steps", str(steps), "--checkpointing_steps", str(max(1, -(-steps // CHECKPOINTS))),
        "--checkpoints_total_limit", "1", "--resume_from_checkpoint", "latest", "--seed", str(seed),
        "--output_dir", str(folder / "student"),
    ]  # fmt: skip
    # Flags of a row override the recipe, and the recipe overrides the world.
    flags = merge_flags([*world.flags(), *recipe, *own, *length], row.without)
    return Job(row, seed, folder, (*launcher, row.script, *flags))


def read_figures(folder: Path) -> dict[int, Figures] | None:
    """Read the figures of a finished run, by number of sampling steps; None if it is not finished."""
    path = folder / "metrics.json"
    if not path.exists():
        return None
    return {int(steps): figures for steps, figures in json.loads(path.read_text(encoding="utf-8")).items()}


def begin_job(job: Job, protocol: str) -> None:
    """Make the job's folder, or check that an existing one belongs to the same job.

    Args:
        protocol: description of the measurement.

    Raises:
        EvaluationError: the folder belongs to another command or measurement; the message shows the difference.
    """
    path, now = job.folder / "run.json", {"command": shlex.join(job.command), "measured": protocol}
    if not path.exists():
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, now)
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    if there != now:
        old, new = (shlex.split(f"{run['command']} measured: {run['measured']}") for run in (there, now))
        only_old, only_new = (shlex.join(w for w in a if w not in b) or "-" for a, b in ((old, new), (new, old)))
        raise EvaluationError(
            f"--output_dir: {job.folder} belongs to another command; delete it or give another folder. "
            f"There: {only_old}; now: {only_new}"
        )


def launch_into(log: Path) -> Launch:
    """Make a `Launch` that runs a command as a process and appends its output to `log`."""

    def launch(command: list[str]) -> None:
        with log.open("a", encoding="utf-8") as file:
            print("$", shlex.join(command), file=file, flush=True)
            # Reports show `python`; the command is run with the interpreter of this process.
            words = [sys.executable, *command[1:]] if command[0] == "python" else command
            status = _run_group(words, file)
        if status:
            tail = " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])
            raise EvaluationError(f"`{shlex.join(command)}` ended with status {status}; {log} ends with: {tail}")

    return launch


def _run_group(words: list[str], output: TextIO) -> int:
    """Run a process until it ends, and return its status. If this process is stopped, the other one and its children
    are killed, because a training that continued would write into the folder of its successor."""
    process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # a kill cannot damage its checkpoints
        process.wait()
        raise


def run_jobs(jobs: list[Job], world: World, launch_for: Callable[[Path], Launch] = launch_into) -> dict[str, str]:
    """Train and measure all jobs that are not finished.

    A failed job is reported and does not stop the others; the next call runs it again.

    Returns:
        Error messages of the failed jobs, by run.

    Raises:
        EvaluationError: a folder belongs to another run; raised before any job is started.
    """
    for job in jobs:
        begin_job(job, world.protocol)
    failed = {}
    for number, job in enumerate(jobs, start=1):
        name = f"{job.row.run}, seed {job.seed}"
        print(f"[{number}/{len(jobs)}] {name}", flush=True)
        figures = read_figures(job.folder)
        missing = [steps for steps in job.row.sampling_steps if steps not in (figures or {})]
        if not missing:
            continue
        try:
            launch = launch_for(job.folder / "train.log")
            if figures is None:
                launch(list(job.command))
            measured = {steps: world.measure_student(job.student, steps, launch) for steps in missing}
            write_json(job.folder / "metrics.json", {**(figures or {}), **measured})
        except ValueError as error:  # EvaluationError, and errors of the metrics for NaN images
            failed[name] = str(error)
            print(f"failed: {error}", file=sys.stderr, flush=True)
    return failed

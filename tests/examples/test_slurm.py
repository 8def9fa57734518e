"""The job script runs here on two nodes that are one machine: two torchrun agents that find each other on loopback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import tiny_world
from training.checkpoints.store import load_checkpoint

ROOT = Path(__file__).parent.parent.parent
TIME_LIMIT = 1200  # seconds

# Runs the command once for each node, as srun does.
SRUN = """#!/bin/bash
shift
for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@" & done
wait
"""
SCONTROL = """#!/bin/bash
case $1 in
  show) printf 'localhost\\nlocalhost\\n' ;;
  *) echo "$@" > "$SCONTROL_LOG" ;;
esac
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Environment of a job of two nodes with one process each, and the commands that its script calls."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_NNODES": "2", "SLURM_JOB_ID": str(os.getpid()), "SLURM_GPUS_ON_NODE": "1",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SCONTROL_LOG": str(tmp_path / "scontrol.log"), "TMPDIR": str(tmp_path), "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def test_job_of_two_nodes_saves_and_requeues_itself_before_its_limit(sdxl_world, tmp_path, cluster):
    """SIGUSR1 reaches the script alone, as `--signal=B:` sends it."""
    flags = tiny_world.flags(sdxl_world, tmp_path / "out", "--max_train_steps", 1000, "--checkpointing_steps", 5)
    log = tmp_path / "log"
    with log.open("w") as file:
        job = subprocess.Popen(
            ["bash", ROOT / "examples/slurm/train.sbatch", *flags], cwd=ROOT, env=cluster, stdout=file, stderr=file
        )
        deadline = time.monotonic() + TIME_LIMIT
        while not (tmp_path / "out" / "checkpoint-5").is_dir():
            assert job.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.5)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=deadline - time.monotonic()) == 0, log.read_text()[-4000:]
    text = log.read_text()
    assert "FSDP2 over 1 processes, 2 copies" in text
    assert "8 = 4 x 2 processes" in text
    saved = max(int(path.name.split("-")[1]) for path in (tmp_path / "out").glob("checkpoint-*"))
    assert f"SIGUSR1: saved checkpoint-{saved}; resume" in text
    assert load_checkpoint(tmp_path / "out" / f"checkpoint-{saved}").state["position"] == 8 * saved
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {os.getpid()}\n"
    assert not (tmp_path / f"torchrun-{os.getpid()}").exists()

"""A process of a run is killed below torchrun, which then starts all of them again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import tiny_world
from training.checkpoints.store import load_checkpoint

ROOT = Path(__file__).parents[2]
STEPS = 5

SCRIPT = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import torch; torch.set_num_threads(1)
import train_add
attempt, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
original, computed = train_add.student_step, []
def student_step(*args):
    computed.append(None)
    if os.environ.get("KILLED") == rank and attempt == "0" and len(computed) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
train_add.student_step = student_step
train_add.main()
os.write(1, f"COMPUTED {{attempt}} {{rank}} {{len(computed)}}\\n".encode())  # in one piece: both have one pipe
"""


def launch(world, folder, **environment):
    """Two processes that are started again at most once. A hang ends at the time limit."""
    script = folder.with_suffix(".py")
    script.write_text(SCRIPT)
    flags = ("--max_train_steps", STEPS, "--checkpointing_steps", 2, "--resume_from_checkpoint", "latest", "--use_ema")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--max_restarts=1",
               "--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", "--master_addr=127.0.0.1", script,
               *tiny_world.flags(world, folder, *flags)]  # fmt: skip
    # Without the last one, torch (2.13, its issue 135712) has processes read addresses of the attempt before.
    env = os.environ | environment | {
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=900)


@pytest.fixture(scope="module")
def straight(world, tmp_path_factory):
    """The uninterrupted run's last checkpoint."""
    folder = tmp_path_factory.mktemp("straight") / "out"
    done = launch(world, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_checkpoint(folder / f"checkpoint-{STEPS}")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_killed_process_comes_back_to_the_result_of_the_uninterrupted_run(world, straight, tmp_path, rank):
    """SIGKILL between the two players' steps of iteration 4, two iterations after a checkpoint of both processes."""
    done = launch(world, tmp_path / "out", KILLED=rank)
    assert done.returncode == 0, done.stderr[-3000:]
    # Attempt 1 went on from checkpoint-2, at both processes; attempt 0 reached no end.
    computed = sorted(line for line in done.stdout.splitlines() if line.startswith("COMPUTED"))
    assert computed == [f"COMPUTED 1 {which} {STEPS - 2}" for which in (0, 1)]
    resumed = load_checkpoint(tmp_path / "out" / f"checkpoint-{STEPS}")
    for group, tensors in straight.tensors.items():
        assert all(torch.equal(value, resumed.tensors[group][name]) for name, value in tensors.items()), group
    without = [{key: value for key, value in c.state.items() if key != "arguments"} for c in (straight, resumed)]
    assert without[0] == without[1]
    assert (tmp_path / "out" / "model_index.json").is_file()

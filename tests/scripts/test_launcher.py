"""A run below `accelerate launch`, which ends without passing a signal on to the process that it has started."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import tiny_world
from training.checkpoints.store import load_checkpoint

ROOT = Path(__file__).parents[2]
TIMEOUT = 180  # seconds

# Says when three iterations are computed. Were the end of the launcher to go unnoticed, the run would end by itself.
SCRIPT = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
import train_add
original, computed = train_add.iteration, []
def iteration(*args):
    computed.append(None)
    if len(computed) == 3:
        os.write(1, b"ready\\n")
    if len(computed) > 3:
        time.sleep(0.2)
    return original(*args)
train_add.iteration = iteration
train_add.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process keeps the id of a parent that has ended")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_ends_at_a_checkpoint_with_its_launcher(world, tmp_path, signum):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    flags = ("--max_train_steps", 300, "--checkpointing_steps", 1000)
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1",
               script, *tiny_world.flags(world, tmp_path / "out", *flags)]  # fmt: skip
    launcher = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert launcher.stdout.readline() == "ready\n", launcher.stderr.read()[-3000:]
        launcher.send_signal(signum)
        assert launcher.wait(TIMEOUT) == -signum
        _, log = launcher.communicate(timeout=TIMEOUT)  # returns at the end of the run, which has the same stderr
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    assert f"accelerate launch (process {launcher.pid}) has ended" in log
    (folder,) = (tmp_path / "out").glob("checkpoint-*")
    step = load_checkpoint(folder).step
    assert 3 <= step < 300
    assert f"SIGTERM: saved checkpoint-{step}; resume" in log
    assert not (tmp_path / "out" / "model_index.json").exists()

"""Signals that end a run after a checkpoint: which ones, the second one, data workers, and several processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.processes.interruption import UNDER_ACCELERATE, Interrupted

ROOT = Path(__file__).parents[3]
TIMEOUT = 180  # seconds


def start(code, *launcher, **environment):
    """A process of its own group, as a terminal starts it, so that Ctrl-C reaches it and all that it starts."""
    code = f"import os, signal, sys, time; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    if launcher:
        Path(launcher[-1]).write_text(code)
    return subprocess.Popen(
        [sys.executable, *(launcher or ("-c", code))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def finish(process):
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return out, err


WAIT = """
from training.processes.interruption import Interruption
with Interruption() as interruption:
    print("ready", flush=True)
    end = time.monotonic() + 60
    while not interruption.received and time.monotonic() < end:
        time.sleep(0.05)
    print(interruption.received, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_first_is_noted_and_second_ends_at_once(signum):
    """Ctrl-C like the others: no KeyboardInterrupt, and the second press needs no Python to run."""
    process = start(WAIT)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    assert process.stdout.readline() == f"{int(signum)}\n"
    process.send_signal(signum)
    began = time.monotonic()
    _, err = finish(process)
    assert process.returncode == -signum
    assert time.monotonic() - began < 30
    assert err == ""


def test_an_echo_under_torchrun_is_not_a_second_request():
    """torchrun passes Ctrl-C on to processes that have it from the terminal; another one later ends at once."""
    process = start(WAIT, TORCHELASTIC_RUN_ID="none")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == f"{int(signal.SIGINT)}\n"
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    finish(process)
    assert process.returncode == -signal.SIGINT


def test_an_ignored_signal_stays_ignored():
    """A shell starts background jobs with SIGINT ignored."""
    process = start(
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from training.processes.interruption import Interruption\n"
        "with Interruption() as interruption:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(interruption.received)\n"
    )
    assert finish(process) == ("0\n", "")


@pytest.mark.parametrize(("environment", "noted"), [({UNDER_ACCELERATE: "default"}, signal.SIGTERM), ({}, 0)])
def test_a_parent_that_ends_is_noted_if_it_is_a_launcher(environment, noted):
    """A run that was started by hand outlives its shell, as with `nohup`."""
    process = start(
        """
from accelerate import Accelerator
from training.processes.interruption import Interruption
accelerator, parent, (ready, entered) = Accelerator(cpu=True), os.getpid(), os.pipe()
if os.fork():
    os.read(ready, 1)
    os._exit(0)
with Interruption() as interruption:
    print(interruption.agreed(accelerator))
    os.write(entered, b"1")
    while os.getppid() == parent:
        time.sleep(0.05)
    print(interruption.agreed(accelerator))
""",
        **environment,
    )
    out, err = finish(process)
    assert out == f"0\n{int(noted)}\n", err
    assert ("accelerate launch" in err) == bool(noted)


def test_status_and_line():
    """128 + 2, as shells have it for Ctrl-C, and one line that says how to go on."""
    error = Interrupted(signal.SIGINT, 7)
    assert error.status == 130
    assert str(error) == "SIGINT: saved checkpoint-7; resume with --resume_from_checkpoint latest"


def test_ctrl_c_leaves_data_workers_alone():
    """The terminal sends it to the workers too; a dead worker would end the run before its checkpoint."""
    process = start("""
import datasets, io
from PIL import Image
from training.data.dataset import make_dataloader
from training.data.reader import SampleReader
from training.processes.interruption import Interruption
buffer = io.BytesIO()
Image.new("RGB", (8, 8)).save(buffer, "PNG")
rows = datasets.Dataset.from_dict({"image": [{"bytes": buffer.getvalue(), "path": None}] * 8, "text": ["x"] * 8})
if __name__ == "__main__":
    loader = make_dataloader(rows, SampleReader("image", "text", 8), batch_size=2, num_workers=2)
    next(loader)
    with Interruption() as interruption:
        print("ready", flush=True)
        while not interruption.received:
            time.sleep(0.05)
        time.sleep(1)
        for _ in range(50):
            next(loader)
        print("read on", flush=True)
""")
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    out, err = finish(process)
    assert (out, process.returncode) == ("read on\n", 0), err


def test_ctrl_c_at_two_processes_saves_one_step(tmp_path):
    """Under torchrun both get it from the terminal and again from torchrun: both end after the same iteration."""
    process = start(
        """
from accelerate import Accelerator
from training.processes.interruption import Interrupted, Interruption
accelerator = Accelerator(cpu=True)
with Interruption() as interruption:
    for step in range(1000):
        time.sleep(0.05)
        if step == 3:
            os.write(1, b"ready\\n")  # in one piece: the processes share the pipe
        if signum := interruption.agreed(accelerator):
            time.sleep(2)  # saving takes longer than the echo needs
            os.write(1, f"saved {step}\\n".encode())
            sys.exit(Interrupted(signum, step).status)
""",
        "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1", "--master_port=0",
        "--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", str(tmp_path / "run.py"),
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    out, err = finish(process)
    saved = [line for line in out.splitlines() if line.startswith("saved")]
    assert len(saved) == 2, err
    assert len(set(saved)) == 1

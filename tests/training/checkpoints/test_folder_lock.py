"""The lock of a folder: a second process is refused, and a killed one leaves nothing locked."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate import Accelerator

from training.checkpoints.folder_lock import LOCK, FolderInUse, lock_folder, lock_folder_of_run
from training.errors import UserError

ROOT = Path(__file__).parents[3]
HOLDER = """
import os, sys, time
from training.checkpoints.folder_lock import lock_folder
lock = lock_folder(sys.argv[1], "--output_dir")
if os.fork() == 0:  # as a data worker: outlives its parent for a while
    time.sleep(60)
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path / "out"`, with a forked worker of its own."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_second_process_is_refused_until_the_first_is_killed(tmp_path, holder):
    """SIGKILL frees the folder at once, although the worker that was forked lives on."""
    with pytest.raises(
        FolderInUse, match=r"--output_dir got '.*out': another process is writing into this folder\. Wait"
    ):
        lock_folder(tmp_path / "out", "--output_dir")
    holder.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while True:
        try:
            with lock_folder(tmp_path / "out", "--output_dir"):
                break
        except FolderInUse:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    os.killpg(holder.pid, 0)  # the worker is still there


def test_one_process_may_hold_a_folder_several_times(tmp_path):
    """A run that publishes into its own folder; by another name for it, too. Free after as many releases."""
    (tmp_path / "link").symlink_to(tmp_path)
    with lock_folder(tmp_path, "--output_dir"):
        with lock_folder(tmp_path / "link", "--output_dir"):
            assert not others_may_have(tmp_path)
        assert not others_may_have(tmp_path)
    assert others_may_have(tmp_path)


def others_may_have(folder) -> bool:
    with open(folder / LOCK) as file:  # another open file, as another process has it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output_dir got '.*file/out': the folder cannot be written to: .*Not a dir"):
        lock_folder(tmp_path / "file" / "out", "--output_dir")


RANKS = """
import sys
from accelerate import Accelerator
from training.checkpoints.folder_lock import lock_folder_of_run
from training.errors import UserError
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
try:
    held = lock_folder_of_run(accelerator, sys.argv[1], "--output_dir")
except UserError as error:
    print(f"refused {accelerator.process_index} {type(error).status} {'another process is writing' in str(error)}")
else:
    accelerator.wait_for_everyone()
    print(f"held {accelerator.process_index}")
"""


@pytest.mark.parametrize("is_held", [False, True])
def test_ranks_of_one_run(tmp_path, request, is_held):
    """Two ranks hold one folder together; where another run holds it both are refused, and neither waits."""
    if is_held:
        request.getfixturevalue("holder")
    (tmp_path / "ranks.py").write_text(RANKS)
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d",
               "--rdzv_endpoint=localhost:0", tmp_path / "ranks.py"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *map(str, command), str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True,
        timeout=120, check=False, env=os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    expected = {"refused 0 1 True", "refused 1 1 True"} if is_held else {"held 0", "held 1"}
    # Two processes write to one pipe, so that their lines may be joined.
    assert all(line in done.stdout for line in expected), done.stderr


def test_context_of_a_run_frees_the_folder(tmp_path):
    with lock_folder_of_run(Accelerator(cpu=True), tmp_path, "--output_dir"):
        assert not others_may_have(tmp_path)
    assert others_may_have(tmp_path)

"""A row's training as a process: what is said when it fails, and that it ends with its parent."""

import signal
import sys
import time
from pathlib import Path

import pytest

from evaluation.ablations.run import launch_into
from evaluation.errors import EvaluationError


def test_a_command_that_fails_is_reported_with_the_end_of_its_log(tmp_path):
    launch = launch_into(tmp_path / "log")
    launch(["python", "-c", "print('first')"])
    with pytest.raises(EvaluationError, match=r"ended with status 3; .*log ends with: .*second"):
        launch([sys.executable, "-c", "import sys; print('second'); sys.exit(3)"])
    assert "first" in (tmp_path / "log").read_text()


def alive(stat: Path) -> bool:
    """Whether a process, by its file in /proc, is there and no zombie."""
    try:
        return stat.read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_interrupted_launch_takes_its_whole_family_along(tmp_path):
    """A launcher's own child must not train on."""
    log = tmp_path / "log"
    script = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            launch_into(log)(["python", "-c", script])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    grandchild = Path(f"/proc/{int(log.read_text().splitlines()[1])}/stat")
    end = time.monotonic() + 20  # on a busy machine the killed do not die at once
    while alive(grandchild) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(grandchild)

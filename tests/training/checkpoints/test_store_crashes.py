"""Checkpoints against crashes at every write, full disks and folders that cannot be written."""

import errno
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from tests.training.checkpoints.writers import assert_content, names, save
from training.checkpoints import store as checkpoint
from training.checkpoints.store import (
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

# --- crashes ---------------------------------------------------------------------------------------------------------


def run_forked(function):
    """Run in a child process; returns the signal that ended it, 0 for none."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def kill_at(k):
    """From now on, SIGKILL this process at the k-th change of the disk: torn files, syncs, renames, removals."""
    done = 0

    def change():
        nonlocal done
        done += 1
        if done == k:
            os.kill(os.getpid(), signal.SIGKILL)

    def torn(write):
        def wrapper(first, second):
            path = first if isinstance(first, Path) else second
            write(first, second)
            whole = path.read_bytes()
            with open(path, "wb") as file:
                file.write(whole[: len(whole) // 2])
            change()
            with open(path, "wb") as file:
                file.write(whole)

        return wrapper

    def synced(descriptor, fsync=os.fsync):
        change()
        fsync(descriptor)

    Path.write_text = lambda path, text, encoding, write=Path.write_text: torn(write)(path, text)
    checkpoint.save_file = torn(checkpoint.save_file)
    os.fsync = synced
    changes = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
    sys.addaudithook(lambda event, arguments: change() if event in changes else None)


def killed_everywhere(tmp_path, prepare, save_again):
    """Yields the output folder after a kill at the first, second, ... change, and at last after a whole save."""
    for k in range(1, 200):
        folder = tmp_path / str(k)
        folder.mkdir()
        prepare(folder)

        def victim(folder=folder, k=k):
            kill_at(k)
            save_again(folder)

        killed = run_forked(victim)
        yield folder
        if not killed:
            assert k > 12  # the test would be empty if nothing were counted
            return
    raise AssertionError("the save never came to its end")


def test_killed_at_every_write(tmp_path):
    """The previous checkpoint loads until the new one does, though the limit is 1; the next save clears the rest."""
    steps = []
    for folder in killed_everywhere(tmp_path, lambda f: save(f, 1), lambda f: save(f, 2, total_limit=1)):
        found = find_checkpoint(folder, "latest")
        steps.append(load_checkpoint(found).step)
        assert_content(found, steps[-1])
        save(folder, 3, total_limit=1)
        assert names(folder) == ["checkpoint-3"]
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}


def test_killed_while_a_step_is_saved_again(tmp_path):
    """Replacing the only checkpoint: at every moment the old or the new content is found."""
    seen = []
    for folder in killed_everywhere(tmp_path, lambda f: save(f, 5), lambda f: save(f, 5, of=6)):
        found = find_checkpoint(folder, "latest")
        seen.append(load_checkpoint(found).state["position"] // 8)
        assert_content(found, seen[-1])
        save(folder, 5)
        assert names(folder) == ["checkpoint-5"]
    assert seen == sorted(seen)
    assert set(seen) == {5, 6}


def test_killed_in_the_first_save(tmp_path):
    """Nothing or the whole checkpoint, never an error: a restarted job begins afresh."""
    folders = killed_everywhere(tmp_path, lambda f: None, lambda f: save(f, 1))
    found = [find_checkpoint(folder, "latest") for folder in folders]
    assert found[0] is None
    assert found[-1].name == "checkpoint-1"
    for path in filter(None, found):
        assert_content(path, 1)


def test_stale_partial_folder(tmp_path):
    """What an earlier crash left is neither resumed from nor kept."""
    path = save(tmp_path, 1)
    shutil.copytree(path, tmp_path / ".tmp-checkpoint-9-0123abcd")
    assert find_checkpoint(tmp_path, "latest") == path
    save(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


# --- disks -----------------------------------------------------------------------------------------------------------


def test_disk_full(tmp_path):
    """A real limit on the size of files: reported with its cause, the partial folder gone, the previous one intact."""
    save(tmp_path / "out", 1)

    def victim():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
        with pytest.raises(
            CheckpointError, match=r"cannot save .*checkpoint-2: .*File too large.*writable and its disk has free space"
        ):
            save_checkpoint(tmp_path / "out", 2, {"student": {"weight": torch.zeros(1 << 16)}}, {})
        assert names(tmp_path / "out") == ["checkpoint-1"]

    assert run_forked(victim) == 0
    assert_content(find_checkpoint(tmp_path / "out", "latest"), 1)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_any_call_fails(tmp_path, monkeypatch, call):
    """No space left at the first, second, ... call of a replacing save: reported, and the old content stays."""
    real, failures = getattr(os, call), 0
    for k in range(1, 50):
        folder = tmp_path / str(k)
        save(folder, 4)
        count = 0

        def failing(*arguments, k=k):
            nonlocal count
            count += 1
            if count == k:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        monkeypatch.setattr(os, call, failing)
        error = None
        try:
            save(folder, 4, of=5)
        except CheckpointError as raised:
            error = str(raised)
        finally:
            monkeypatch.setattr(os, call, real)
        if error is None:
            assert_content(folder / "checkpoint-4", 5)
            break
        assert "No space left on device" in error
        failures += 1
        published = names(folder) != ["checkpoint-4"]  # only the sync of the output folder failed, after the renames
        assert not published or call == "fsync"
        assert_content(find_checkpoint(folder, "latest"), 5 if published else 4)
    assert failures >= 2


def test_output_dir_cannot_be_written(tmp_path, monkeypatch):
    """A file where the folder should be, a folder without write permission: the path, the cause, the mend."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/out/checkpoint-1: .*Not a directory.*--output_dir is writable"):
        save(tmp_path / "file" / "out", 1)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if os.access(closed, os.W_OK):  # root may write everywhere

        def refuse(path, *_):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(CheckpointError, match=r"checkpoint-1: .*Permission denied"):
        save(closed, 1)
    assert names(closed) == []

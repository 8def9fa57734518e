"""Checkpoints against crashes, full disks, damage and planted files."""

import errno
import hashlib
import json
import logging
import os
import pickle
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from training import checkpoint
from training.checkpoint import (
    CheckpointError,
    configuration_difference,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)


def content(step):
    """Tensors and state that differ with `step` in every value, as far as a file has room for it."""
    student = {"weight": torch.full((3, 5), float(step)), "bias": torch.tensor(step)}
    ema = {"weight": torch.full((4,), step, dtype=torch.bfloat16)}
    return {"student": student, "ema": ema}, {"position": 8 * step, "lr": 0.1 / step}


def save(output_dir, step, total_limit=None, of=None):
    return save_checkpoint(output_dir, step, *content(of or step), total_limit=total_limit)


def assert_content(path, step):
    loaded = load_checkpoint(path)
    tensors, state = content(step)
    assert loaded.state == state
    assert loaded.tensors.keys() == tensors.keys()
    for group in tensors:
        assert loaded.tensors[group].keys() == tensors[group].keys()
        for name, tensor in tensors[group].items():
            assert loaded.tensors[group][name].dtype == tensor.dtype
            assert torch.equal(loaded.tensors[group][name], tensor)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- what is stored --------------------------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    """Every dtype and shape bit for bit, shared and non-contiguous memory too; the manifest is that of the files."""
    shared = torch.arange(6.0)
    tensors = {
        "a": {"f64": torch.tensor([0.1, float("nan"), -0.0], dtype=torch.float64), "u8": torch.arange(5).byte(),
              "scalar": torch.tensor(7), "empty": torch.zeros(0, 3), "bool": torch.tensor([True, False])},
        "b.c-d_2": {"one": shared, "tied": shared, "view": shared[2:4], "transposed": shared.view(2, 3).t()},
    }  # fmt: skip
    state = {"none": None, "nested": {"list": [1, 2.5, "x", True]}, "tuple": (1, (2, 3)), "big": 2**70, "tiny": 5e-324}
    path = save_checkpoint(tmp_path / "new" / "out", 12, tensors, state)
    assert path == tmp_path / "new" / "out" / "checkpoint-12"
    loaded = load_checkpoint(str(path))
    assert (loaded.path, loaded.step) == (path, 12)
    assert loaded.state == state | {"tuple": [1, [2, 3]]}
    for group, named in tensors.items():
        for name, tensor in named.items():
            got = loaded.tensors[group][name]
            assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
            assert got.contiguous().view(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()
    manifest = json.loads((path / "manifest.json").read_text())
    assert sorted(manifest) == ["a.safetensors", "b.c-d_2.safetensors", "state.json"]
    for name, entry in manifest.items():
        data = (path / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert len({(path / name).stat().st_mode for name in manifest}) == 1  # whoever may read one may read all


@pytest.mark.parametrize(
    ("tensors", "state", "message"),
    [
        ({}, {0: "x"}, "keys of dictionaries must be strings"),
        ({}, {"loss": float("nan")}, "not JSON compliant"),
        ({}, {"seed": torch.tensor(1)}, "not JSON serializable"),
        ({"../student": {}}, {}, "cannot name a group"),
        ({".hidden": {}}, {}, "cannot name a group"),
    ],
)
def test_unstorable_content_is_refused(tmp_path, tensors, state, message):
    """Nothing is silently changed, and nothing is written."""
    with pytest.raises((TypeError, ValueError), match=message):
        save_checkpoint(tmp_path, 1, tensors, state)
    assert names(tmp_path) == []


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
            CheckpointError, match=r"cannot save .*checkpoint-2: .*File too large.*writable and has room"
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


# --- damage ----------------------------------------------------------------------------------------------------------

FILES = ["manifest.json", "state.json", "student.safetensors", "ema.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_truncated_or_missing_file(tmp_path, caplog, name):
    """Found in any file, at any length; "latest" says so and takes the previous checkpoint."""
    previous, path = save(tmp_path, 1), save(tmp_path, 2)
    whole = (path / name).read_bytes()
    for length in (0, len(whole) // 2, len(whole) - 1):
        (path / name).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read"):
        load_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(tmp_path, "latest") == previous
    assert f"checkpoint-2 is passed over: {'' if name != 'manifest.json' else str(path)}" in caplog.text
    assert name in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(tmp_path, name):
    """Every byte of every file counts: with one of its bits flipped the checkpoint is refused."""
    path = save(tmp_path, 1)
    whole = (path / name).read_bytes()
    for position in range(len(whole)):
        flip(path / name, whole, 8 * position + position % 8)
        with pytest.raises(CheckpointError):
            checkpoint.verify_manifest(path)
    (path / name).write_bytes(whole)
    assert_content(path, 1)


def test_every_bit_of_the_manifest(tmp_path):
    """It has no sum of its own, so all its bits are tried, spaces too."""
    path = save_checkpoint(tmp_path, 1, {}, {})
    whole = (path / "manifest.json").read_bytes()
    for bit in range(8 * len(whole)):
        flip(path / "manifest.json", whole, bit)
        with pytest.raises(CheckpointError):
            checkpoint.verify_manifest(path)


def flip(path, whole, bit):
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)


def test_all_checkpoints_damaged(tmp_path):
    """Resuming from nothing whole is an error, since starting afresh would lose the training; from nothing, None."""
    assert find_checkpoint(tmp_path, "latest") is None
    assert find_checkpoint(tmp_path / "missing", "latest") is None
    assert find_checkpoint(tmp_path, None) is None
    for step in (1, 2):
        (save(tmp_path, step) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        find_checkpoint(tmp_path, "latest")


def test_explicit_checkpoint(tmp_path):
    """By name in the output folder or by path; it must verify, and no other is taken in its stead."""
    first, second = save(tmp_path, 9), save(tmp_path, 10)
    assert find_checkpoint(tmp_path, "latest") == second  # 10 after 9, by number
    assert find_checkpoint(tmp_path, "checkpoint-9") == first
    assert find_checkpoint(tmp_path / "elsewhere", str(first)) == first
    (second / "ema.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"ema\.safetensors has 0 bytes"):
        find_checkpoint(tmp_path, "checkpoint-10")
    with pytest.raises(CheckpointError, match=r"checkpoint-11 is not a whole checkpoint.*No such file"):
        find_checkpoint(tmp_path, "checkpoint-11")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_planted_pickle_is_never_executed(tmp_path):
    """Pickles beside the files are ignored; one in a file's place, with a manifest to match, is no safetensors."""
    path, mark = save(tmp_path, 1), tmp_path / "executed"
    planted = pickle.dumps(Bomb(str(mark)))
    for name in ("optimizer.bin", "random_states_0.pkl", "student.pt", "state.pkl", "scheduler.bin"):
        (path / name).write_bytes(planted)
    assert_content(find_checkpoint(tmp_path, "latest"), 1)
    (path / "student.safetensors").write_bytes(planted)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["student.safetensors"] = {"bytes": len(planted), "sha256": hashlib.sha256(planted).hexdigest()}
    (path / "manifest.json").write_text(checkpoint.to_json(manifest))
    with pytest.raises(CheckpointError, match="checkpoint-1 cannot be read"):
        load_checkpoint(path)
    manifest["../optimizer.bin"] = manifest.pop("student.safetensors")
    (path / "manifest.json").write_text(checkpoint.to_json(manifest))
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged, or not this program's"):
        load_checkpoint(path)
    assert not mark.exists()
    pickle.loads(planted).close()
    assert mark.exists()  # it would have gone off


# --- pruning ---------------------------------------------------------------------------------------------------------


def test_prune(tmp_path):
    """The lowest steps go, by number and not by name; no limit keeps all."""
    for step in (8, 9, 10):
        save(tmp_path, step)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-8", "checkpoint-9"]
    save(tmp_path, 11, total_limit=2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-11"]
    save(tmp_path, 3, total_limit=1)  # a resumed run that went back: what it wrote last is never pruned
    assert names(tmp_path) == ["checkpoint-3"]
    with pytest.raises(ValueError, match="--checkpoints_total_limit is 0"):
        save(tmp_path, 4, total_limit=0)


def test_prune_leaves_what_is_not_ours(tmp_path):
    """Folders without our manifest stay; a damaged checkpoint doesn't count as one of those that are kept."""
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "pytorch_model.bin").write_text("someone else's")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "logs").mkdir()
    save(tmp_path, 2)
    (save(tmp_path, 3) / "student.safetensors").unlink()
    save(tmp_path, 4, total_limit=2)
    assert names(tmp_path) == [
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-3",
        "checkpoint-4",
        "checkpoint-best",
        "logs",
    ]
    save(tmp_path, 5, total_limit=2)
    assert "checkpoint-2" not in names(tmp_path)


def test_prune_only_after_a_verified_save(tmp_path, monkeypatch):
    """Data that did not reach the disk as it was meant to: the save fails and nothing is pruned."""
    save(tmp_path, 1)

    def lossy(folder, write=checkpoint.write_manifest):
        write(folder)
        path = folder / "student.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")

    monkeypatch.setattr(checkpoint, "write_manifest", lossy)
    with pytest.raises(CheckpointError, match=r"student\.safetensors is damaged"):
        save(tmp_path, 2, total_limit=1)
    assert names(tmp_path) == ["checkpoint-1"]


# --- options ---------------------------------------------------------------------------------------------------------


def test_configuration_difference():
    """Only the keys asked for; a tuple equals the list that JSON made of it; absent reads None."""
    saved = {"resolution": 512, "student_timesteps": [249, 999], "learning_rate": 1e-5}
    current = {"resolution": 768, "student_timesteps": (249, 999), "learning_rate": 1e-6, "use_ema": True}
    keys = ("resolution", "student_timesteps", "use_ema")
    expected = "--resolution: 512 -> 768; --use_ema: None -> True"
    assert configuration_difference(saved, current, keys) == expected
    assert configuration_difference(saved, current, ("student_timesteps",)) is None

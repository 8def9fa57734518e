"""Checkpoints: what they hold, which one is found, and what damage, planted files and pruning do to them."""

import hashlib
import json
import logging
import pickle

import pytest
import torch

from tests.training.checkpoints.writers import assert_content, names, save
from training.checkpoints import store as checkpoint
from training.checkpoints.manifest import to_json, verify_manifest
from training.checkpoints.store import (
    CheckpointError,
    configuration_difference,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

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
    assert f"checkpoint-2 is skipped: {'' if name != 'manifest.json' else str(path)}" in caplog.text
    assert name in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(tmp_path, name):
    """Every byte of every file counts: with one of its bits flipped the checkpoint is refused."""
    path = save(tmp_path, 1)
    whole = (path / name).read_bytes()
    for position in range(len(whole)):
        flip(path / name, whole, 8 * position + position % 8)
        with pytest.raises(CheckpointError):
            verify_manifest(path)
    (path / name).write_bytes(whole)
    assert_content(path, 1)


def test_every_bit_of_the_manifest(tmp_path):
    """It has no sum of its own, so all its bits are tried, spaces too."""
    path = save_checkpoint(tmp_path, 1, {}, {})
    whole = (path / "manifest.json").read_bytes()
    for bit in range(8 * len(whole)):
        flip(path / "manifest.json", whole, bit)
        with pytest.raises(CheckpointError):
            verify_manifest(path)


def flip(path, whole, bit):
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)


@pytest.mark.parametrize("with_file", [False, True])
@pytest.mark.parametrize("lost", ["state.json", "student.safetensors", "ema.safetensors"])
def test_entry_removed_from_the_manifest(tmp_path, caplog, lost, with_file):
    """Alone or with the file itself: an error that names it, and "latest" takes the previous checkpoint."""
    previous, path = save(tmp_path, 1), save(tmp_path, 2)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest[lost]
    (path / "manifest.json").write_text(to_json(manifest))
    if with_file:
        (path / lost).unlink()
    with pytest.raises(CheckpointError, match=rf"manifest\.json .*does not name {lost}"):
        load_checkpoint(path)
    assert find_checkpoint(tmp_path, "latest") == previous
    assert "checkpoint-2 is skipped" in caplog.text


def write_with_manifest(path, name, data):
    """Damage with a manifest to match."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "manifest.json").write_text(to_json(manifest))


@pytest.mark.parametrize(
    "content", ["[]", '{"state": {}}', '{"state": [], "step": 2}', '{"state": {}, "step": "2"}', "7", "[" * 100_000,
                '{"state": {}, "step": 2, "groups": 3}', '{"state": {}, "step": 2, "groups": [["student"]]}']
)  # fmt: skip
def test_state_of_another_form(tmp_path, caplog, content):
    """Valid by the manifest, yet not what is written there: the same fall-back, never another exception."""
    previous, path = save(tmp_path, 1), save(tmp_path, 2)
    write_with_manifest(path, "state.json", content.encode())
    with pytest.raises(CheckpointError, match="checkpoint-2"):
        load_checkpoint(path)
    assert find_checkpoint(tmp_path, "latest") == previous


def test_checkpoint_of_an_earlier_version(tmp_path):
    """Its state has no list of groups: it loads, and a lost entry shows by the file that is left."""
    previous, path = save(tmp_path, 1), save(tmp_path, 2)
    content = json.loads((path / "state.json").read_text())
    del content["groups"]
    write_with_manifest(path, "state.json", json.dumps(content).encode())
    assert_content(find_checkpoint(tmp_path, "latest"), 2)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["ema.safetensors"]
    (path / "manifest.json").write_text(to_json(manifest))
    assert find_checkpoint(tmp_path, "latest") == previous


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
    with pytest.raises(CheckpointError, match=r"checkpoint-11 is not a complete checkpoint.*No such file"):
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
    (path / "manifest.json").write_text(to_json(manifest))
    with pytest.raises(CheckpointError, match="checkpoint-1 cannot be read"):
        load_checkpoint(path)
    manifest["../optimizer.bin"] = manifest.pop("student.safetensors")
    (path / "manifest.json").write_text(to_json(manifest))
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged, or was not written by"):
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


def test_replaced_folder_that_is_not_ours_stays(tmp_path):
    """Another program's checkpoint of the same name, with a `manifest.json` of its own, is set aside and kept."""
    other = tmp_path / "checkpoint-2"
    other.mkdir()
    (other / "manifest.json").write_text('{"model": "theirs"}')
    save(tmp_path, 2)
    save(tmp_path, 3, total_limit=1)
    [kept] = [path for path in tmp_path.iterdir() if path.name.startswith(".old-checkpoint-2-")]
    assert (kept / "manifest.json").read_text() == '{"model": "theirs"}'


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

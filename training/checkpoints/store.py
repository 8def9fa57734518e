"""Saving, loading and pruning of crash-safe checkpoints in safetensors and JSON, without pickle.

A checkpoint is first written into a temporary folder. Every file is flushed to the disk, the manifest of SHA-256 hashes
last; then the checkpoint is verified, renamed to `checkpoint-N`, and older checkpoints are pruned. Every `checkpoint-N`
is therefore complete unless the disk damages it later, which the manifest reveals.

    checkpoint-500/
        manifest.json         {"state.json": {"bytes": ..., "sha256": ...}, ...}
        state.json            {"groups": ["student", ...], "state": {...}, "step": 500}
        student.safetensors   one file for each group of tensors
"""

import contextlib
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.checkpoints.manifest import (
    FILE_NAME,
    STATE,
    CheckpointError,
    as_lists,
    is_ours,
    sync,
    to_json,
    verify_checkpoint,
    write_manifest,
    write_text,
)
from training.checkpoints.optimizer_state import load_optimizer_tensors as load_optimizer_tensors
from training.checkpoints.optimizer_state import optimizer_tensors as optimizer_tensors

logger = logging.getLogger(__name__)

FINAL = re.compile(r"checkpoint-(\d+)")
# Folders that a crash can leave behind: a partial checkpoint, or a complete one that was being replaced.
PARTIAL = re.compile(r"\.tmp-checkpoint-(\d+)-[0-9a-f]+")
DISPLACED = re.compile(r"\.old-checkpoint-(\d+)-[0-9a-f]+")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `tensors[group][name]` on the CPU, and `state` as read from JSON (lists, no tuples)."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    output_dir: str | os.PathLike,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: dict[str, Any],
    total_limit: int | None = None,
) -> Path:
    """Write `output_dir/checkpoint-{step}`, then prune. Only one process may call this function.

    Args:
        output_dir: made if it isn't there.
        step: N of the name; a checkpoint of that name is replaced.
        tensors: groups of named tensors on any device, each group a file. Asked for one after the other.
        state: anything that JSON holds; tuples come back as lists.
        total_limit: how many whole checkpoints to keep, this one included; the lowest steps go first. None keeps all.

    Raises:
        CheckpointError: the checkpoint cannot be written (disk full, read-only); older checkpoints are not changed.
        ValueError, TypeError: an argument is out of range, or `state` is not JSON-serializable.
    """
    if total_limit is not None and total_limit < 1:
        raise ValueError(f"--checkpoints_total_limit is {total_limit}: it must be at least 1")
    for group in tensors:
        if not FILE_NAME.fullmatch(f"{group}.safetensors"):
            raise ValueError(f"'{group}' cannot name a group of tensors: use letters, digits, '_', '-' and '.'")
    text = to_json({"groups": sorted(tensors), "state": state, "step": step})
    final = Path(output_dir, f"checkpoint-{step}")
    partial = _beside(final, "tmp")
    try:
        os.makedirs(partial)
        write_text(partial / STATE, text)
        for group, named in tensors.items():
            _write_tensors(partial / f"{group}.safetensors", named)
        write_manifest(partial)
        verify_checkpoint(partial)
        _publish(partial, final)
    except (OSError, SafetensorError, CheckpointError) as error:
        raise CheckpointError(
            f"cannot save {final}: {error}. Older checkpoints are not changed. Check that --output_dir is writable and "
            "its disk has free space, then resume with --resume_from_checkpoint latest"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # does not exist any more if it was published
    _prune(final, total_limit)
    return final


def _beside(final: Path, kind: str) -> Path:
    return final.with_name(f".{kind}-{final.name}-{uuid.uuid4().hex[:8]}")


def _write_tensors(path: Path, named: Mapping[str, Tensor]) -> None:
    # safetensors refuses tensors that share memory, such as tied weights, so these are cloned and stored twice.
    seen, separate = set(), {}
    for name, tensor in named.items():
        tensor = tensor.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    save_file(separate, path)
    shutil.copymode(path.with_name(STATE), path)  # safetensors creates files that only their owner can read
    sync(path)


def _publish(partial: Path, final: Path) -> None:
    """Rename `partial` to `final`. A folder cannot replace another, so an existing one is moved first, not deleted."""
    displaced = _beside(final, "old") if final.exists() else None
    if displaced:
        os.replace(final, displaced)
    try:
        os.replace(partial, final)
    except OSError:
        if displaced:
            os.replace(displaced, final)
        raise
    sync(final.parent)


def _prune(new: Path, total_limit: int | None) -> None:
    """Remove checkpoints that `new` makes surplus, except damaged folders and those that this module did not write."""
    found = list(new.parent.iterdir())
    superfluous = [path for path in found if PARTIAL.fullmatch(path.name)]
    superfluous += [path for path in found if DISPLACED.fullmatch(path.name) and is_ours(path)]
    if total_limit is not None:
        older = [path for path in found if FINAL.fullmatch(path.name) and path != new and _is_whole(path)]
        superfluous += sorted(older, key=_step_of)[: max(0, len(older) + 1 - total_limit)]
    for path in superfluous:
        # Rename before removing, so that a crash does not leave a partly removed folder with a checkpoint's name.
        doomed = _beside(path.with_name(f"checkpoint-{_step_of(path)}"), "tmp")
        try:
            os.replace(path, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            logger.warning("could not remove the surplus checkpoint %s: %s", path, error)


def _step_of(path: Path) -> int:
    return int(next(match for p in (FINAL, PARTIAL, DISPLACED) if (match := p.fullmatch(path.name)))[1])


def _is_whole(path: Path) -> bool:
    with contextlib.suppress(CheckpointError):
        verify_checkpoint(path, hashes=False)
        return True
    return False


def load_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Verify and read a checkpoint.

    Raises:
        CheckpointError: the checkpoint is incomplete or damaged; the message names the file.
    """
    path = Path(path)
    content = verify_checkpoint(path)
    try:
        groups = {group: load_file(path / f"{group}.safetensors") for group in content["groups"]}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return Checkpoint(path, content["step"], groups, content["state"])


def find_checkpoint(output_dir: str | os.PathLike, resume_from: str | None) -> Path | None:
    """Find and verify the checkpoint to resume from. Returns None for a new run.

    Args:
        output_dir: folder of the checkpoints.
        resume_from: `--resume_from_checkpoint`: None for a new run; "latest" for the complete checkpoint with the
            highest step, or a new run if there are no checkpoints; or the path of a checkpoint or its name in
            `output_dir`.

    Raises:
        CheckpointError: the checkpoint does not exist or is not complete; for "latest", no checkpoint is complete.
    """
    if resume_from is None:
        return None
    if resume_from != "latest":
        path = Path(resume_from) if Path(resume_from).is_dir() else Path(output_dir, Path(resume_from).name)
        verify_checkpoint(path)
        return path
    candidates = _candidates(Path(output_dir))
    for path in candidates:
        try:
            verify_checkpoint(path)
            return path
        except CheckpointError as error:
            logger.warning("%s is skipped: %s", path.name, error)
    if candidates:
        raise CheckpointError(
            f"--resume_from_checkpoint latest: none of the {len(candidates)} checkpoints in {output_dir} is complete. "
            "Move them to another folder to start a new run"
        )
    return None


def _candidates(output_dir: Path) -> list[Path]:
    """Checkpoints, highest step first, including one that was being replaced when the process crashed."""
    try:
        found = list(output_dir.iterdir()) if output_dir.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"--output_dir {output_dir} cannot be read: {error}") from error
    found = [path for path in found if FINAL.fullmatch(path.name) or DISPLACED.fullmatch(path.name)]
    return sorted(found, key=lambda path: (_step_of(path), not path.name.startswith(".")), reverse=True)


def configuration_difference(saved: dict[str, Any], current: dict[str, Any], keys: Iterable[str]) -> str | None:
    """Describe the differences between options as "--flag: saved -> now; ...", or return None. Tuples equal lists."""
    changes = [(key, as_lists(saved.get(key)), as_lists(current.get(key))) for key in keys]
    return "; ".join(f"--{key}: {then} -> {now}" for key, then, now in changes if then != now) or None

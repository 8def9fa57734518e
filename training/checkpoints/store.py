"""Checkpoints that a crash cannot spoil: safetensors and JSON, no pickle.

A checkpoint is written into a folder of another name, every file forced to the disk, the manifest of SHA-256 sums
last; it is read back and compared, only then renamed to `checkpoint-N`, and only then are older ones pruned. So
every `checkpoint-N` is whole unless the disk damages it later, which the manifest shows.

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
# What a crash can leave behind: a partial checkpoint, of no use, or one that was being replaced, which is whole.
PARTIAL = re.compile(r"\.tmp-checkpoint-(\d+)-[0-9a-f]+")
DISPLACED = re.compile(r"\.old-checkpoint-(\d+)-[0-9a-f]+")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `tensors[group][name]` on the CPU, `state` as JSON gives it (lists, no tuples)."""

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
    """Write `output_dir/checkpoint-{step}`, then prune. To be called by one process only.

    Args:
        output_dir: made if it isn't there.
        step: N of the name; a checkpoint of that name is replaced.
        tensors: groups of named tensors on any device, each group a file. Asked for one after the other.
        state: anything that JSON holds; tuples come back as lists.
        total_limit: how many whole checkpoints to keep, this one included; the lowest steps go first. None keeps all.

    Raises:
        CheckpointError: it cannot be written (disk full, read-only); the older checkpoints are as they were.
        ValueError, TypeError: an argument is out of range, or JSON cannot hold `state`.
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
            f"cannot save {final}: {error}. Older checkpoints are untouched. See that --output_dir is writable and has "
            "room, then go on with --resume_from_checkpoint latest"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # there is nothing of that name once it is published
    _prune(final, total_limit)
    return final


def _beside(final: Path, kind: str) -> Path:
    return final.with_name(f".{kind}-{final.name}-{uuid.uuid4().hex[:8]}")


def _write_tensors(path: Path, named: Mapping[str, Tensor]) -> None:
    # safetensors refuses tensors that share memory, such as tied weights: they are stored twice.
    seen, separate = set(), {}
    for name, tensor in named.items():
        tensor = tensor.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    save_file(separate, path)
    shutil.copymode(path.with_name(STATE), path)  # safetensors makes files that only their owner may read
    sync(path)


def _publish(partial: Path, final: Path) -> None:
    """Rename. A folder cannot be renamed onto another, so one that stands there is first set aside, not deleted."""
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
    """Remove what `new` makes superfluous. Folders that this module did not write, or that are damaged, stay."""
    found = list(new.parent.iterdir())
    superfluous = [path for path in found if PARTIAL.fullmatch(path.name)]
    superfluous += [path for path in found if DISPLACED.fullmatch(path.name) and is_ours(path)]
    if total_limit is not None:
        older = [path for path in found if FINAL.fullmatch(path.name) and path != new and _is_whole(path)]
        superfluous += sorted(older, key=_step_of)[: max(0, len(older) + 1 - total_limit)]
    for path in superfluous:
        # Renamed first: a crash in mid-removal must not leave half a checkpoint under a checkpoint's name.
        doomed = _beside(path.with_name(f"checkpoint-{_step_of(path)}"), "tmp")
        try:
            os.replace(path, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            logger.warning("could not remove the superfluous %s: %s", path, error)


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
        CheckpointError: it is not what was written; the message names the file.
    """
    path = Path(path)
    content = verify_checkpoint(path)
    try:
        groups = {group: load_file(path / f"{group}.safetensors") for group in content["groups"]}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return Checkpoint(path, content["step"], groups, content["state"])


def find_checkpoint(output_dir: str | os.PathLike, resume_from: str | None) -> Path | None:
    """The verified checkpoint to resume from, or None to start afresh.

    Args:
        output_dir: where checkpoints lie.
        resume_from: `--resume_from_checkpoint`: None; "latest", the highest step that is whole, or None if there are
            no checkpoints at all; or a checkpoint's path, or its name in `output_dir`.

    Raises:
        CheckpointError: the checkpoint asked for is not there or not whole; for "latest", there are some, none whole.
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
            logger.warning("%s is passed over: %s", path.name, error)
    if candidates:
        raise CheckpointError(
            f"--resume_from_checkpoint latest: none of the {len(candidates)} checkpoints in {output_dir} is whole. "
            "Move them away to start afresh"
        )
    return None


def _candidates(output_dir: Path) -> list[Path]:
    """Checkpoints, highest step first; one set aside counts, as a crash may have come before it was replaced."""
    try:
        found = list(output_dir.iterdir()) if output_dir.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"--output_dir {output_dir} cannot be read: {error}") from error
    found = [path for path in found if FINAL.fullmatch(path.name) or DISPLACED.fullmatch(path.name)]
    return sorted(found, key=lambda path: (_step_of(path), not path.name.startswith(".")), reverse=True)


def configuration_difference(saved: dict[str, Any], current: dict[str, Any], keys: Iterable[str]) -> str | None:
    """What differs between two sets of options, as "--flag: saved -> now; ...", or None. Tuples equal lists."""
    changes = [(key, as_lists(saved.get(key)), as_lists(current.get(key))) for key in keys]
    return "; ".join(f"--{key}: {then} -> {now}" for key, then, now in changes if then != now) or None

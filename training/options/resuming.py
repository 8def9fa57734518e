"""Check that the fixed flags, the data and the models have not changed when a run is resumed."""

from collections.abc import Iterator, Mapping
from typing import Any

from training.errors import OptionError
from training.options.declaration import Resume
from training.options.options import Options, all_flags

# Properties of a run other than its flags, which must be the same when it is resumed. None means unknown.
FACTS = {
    "data": "the data set's content",
    "teacher": "the teacher's files",
    "student": "the files of the model that the student started from",
    "effective_batch_size": "samples per iteration, over all processes",
    "processes": "the number of processes",
}


def check_resumed(checkpoint: str, saved: Mapping[str, Any], current: Mapping[str, Any], options: Options) -> list[str]:
    """Compare the flags and facts of a checkpoint with those of the run that continues it.

    Args:
        checkpoint: name of the checkpoint, for the error message.
        saved, current: values of flags and of `FACTS` by name, from the checkpoint and from the current run.
        options: options of the current run; `--allow_changed` names the values that may differ.

    Returns:
        The allowed changes, as "--flag: saved -> now", for the log and the model card.

    Raises:
        OptionError: a fixed value has changed, or `--allow_changed` has an unknown name. One message lists all
            differences.
    """
    allowed = set(options.output.allow_changed or ())
    fixed = set(fixed_names(options))
    if unknown := sorted(allowed - {flag.name for flag in all_flags()} - FACTS.keys()):
        raise OptionError(
            f"--allow_changed got {unknown[0]!r}: there is no such flag; give the name of a flag or one of "
            f"{', '.join(FACTS)}"
        )
    changes = dict(_changes(saved, current, fixed))
    if refused := [change for name, change in changes.items() if name not in allowed]:
        names = " ".join(name for name in changes if name not in allowed)
        raise OptionError(
            f"--resume_from_checkpoint got {checkpoint}, which was trained with other options: {'; '.join(refused)}. "
            f"Use the same options, start a new run in another --output_dir, or add --allow_changed {names}"
        )
    return list(changes.values())


def fixed_names(options: Options) -> Iterator[str]:
    """Names of the flags and facts that are fixed for a run with `options`."""
    has_length = options.optimization.lr_scheduler not in ("constant", "constant_with_warmup")
    is_fixed = {
        Resume.FIXED: True,
        Resume.FIXED_FOR_STREAMS: options.data.streaming,
        Resume.FIXED_BY_SCHEDULE: has_length,
        Resume.FREE: False,
    }
    yield from (flag.name for flag in all_flags() if is_fixed[flag.resume])
    # The order of a stream also depends on the number of processes, because each reads its own part of the stream.
    yield from (name for name in FACTS if name != "processes" or options.data.streaming)


def _changes(saved: Mapping[str, Any], current: Mapping[str, Any], names: set[str]) -> Iterator[tuple[str, str]]:
    for name in sorted(names):
        # A checkpoint of an earlier version does not have flags that were added later.
        if name not in saved or name not in current:
            continue
        then, now = _plain(saved[name]), _plain(current[name])
        if then == now or (name in FACTS and None in (then, now)):
            continue
        if name in FACTS:
            shown = f"{then} -> {now}" if isinstance(now, int) else "changed"
            yield name, f"{name} ({FACTS[name]}): {shown}"
        else:
            yield name, f"--{name}: {then} -> {now}"


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value

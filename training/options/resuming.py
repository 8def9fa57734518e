"""What may not change when a run is resumed: the fixed flags, and the data and models that they name."""

from collections.abc import Iterator, Mapping
from typing import Any

from training.errors import OptionError
from training.options.declaration import Resume
from training.options.options import Options, all_flags

# Facts of a run beside its flags. A run that is resumed has the same; None is a fact that could not be known.
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
        checkpoint: its name, for the error.
        saved, current: flags by name and facts by the names of `FACTS`.
        options: of the run that continues; `--allow_changed` names what may differ.

    Returns:
        The allowed changes, as "--flag: saved -> now", for the log and the model card.

    Raises:
        OptionError: something that is fixed has changed, or `--allow_changed` names what is no fixed flag. All
            differences are in one message.
    """
    allowed = set(options.output.allow_changed or ())
    fixed = set(fixed_names(options))
    if unknown := sorted(allowed - {flag.name for flag in all_flags()} - FACTS.keys()):
        raise OptionError(
            f"--allow_changed got {unknown[0]!r}: there is no such flag; the facts are {', '.join(FACTS)}"
        )
    changes = dict(_changes(saved, current, fixed))
    if refused := [change for name, change in changes.items() if name not in allowed]:
        names = " ".join(name for name in changes if name not in allowed)
        raise OptionError(
            f"--resume_from_checkpoint got {checkpoint}, which was trained with other options: {'; '.join(refused)}. "
            f"Use the same ones, start a new run in another --output_dir, or continue with --allow_changed {names}"
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
    # A stream has no index: its order also depends on how many processes read which part of it.
    yield from (name for name in FACTS if name != "processes" or options.data.streaming)


def _changes(saved: Mapping[str, Any], current: Mapping[str, Any], names: set[str]) -> Iterator[tuple[str, str]]:
    for name in sorted(names):
        # A checkpoint of an earlier version may lack a flag that it could not have had.
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

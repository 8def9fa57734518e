"""Declaration of command-line flags as fields of frozen dataclasses.

The parser, the checks, resuming, the model card and the advice on memory all read these declarations.
"""

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from training.errors import OptionError


class Resume(Enum):
    """Whether a flag may have another value when a run is resumed from a checkpoint."""

    FREE = "free to change"
    FIXED = "fixed: another value would train something else from the checkpoint on"
    FIXED_FOR_STREAMS = "fixed with --streaming, where the order of samples depends on it"
    FIXED_BY_SCHEDULE = "fixed if the learning rate schedule depends on the number of iterations"


@dataclass(frozen=True)
class Range:
    """The numbers that a flag accepts; `text` completes the sentence "give ..."."""

    holds: Callable[[float], bool]
    text: str


AT_LEAST_ONE = Range(lambda v: v >= 1, "1 or more")
POSITIVE = Range(lambda v: v > 0, "a number above 0")
NOT_NEGATIVE = Range(lambda v: v >= 0, "0 or more")
FRACTION = Range(lambda v: 0 <= v < 1, "a number in [0, 1)")


@dataclass(frozen=True)
class Flag:
    """One flag as it was declared.

    Attributes:
        name: name without the two dashes; also the name of the field.
        kind: `str`, `int`, `float` or `bool`, of the value or of each of its items.
        count: number of values that the flag takes: None for one, "+" for one or more, or a number.
        default: default value; `dataclasses.MISSING` if the flag is required.
        help: text for `--help`, in whole sentences.
        resume: whether the value may change when a run is resumed.
        is_private: whether the flag is left out of the model card because it only concerns this machine or account.
        is_secret: whether the value must never be written, neither to checkpoints nor to trackers.
        range: accepted range of a number; None accepts any finite number.
        choices: accepted values; None accepts any.
        metavar: placeholder of the value in `--help`.
        saves: description of the memory that the flag saves and its cost, for the advice after an out-of-memory
            error; None if the flag saves no memory.
    """

    name: str
    kind: type
    count: str | int | None
    default: Any
    help: str
    resume: Resume
    is_private: bool
    is_secret: bool
    range: Range | None
    choices: tuple[str, ...] | None
    metavar: str | tuple[str, ...] | None
    saves: str | None

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Add the flag to a group of an argument parser."""
        if self.kind is bool:
            group.add_argument(f"--{self.name}", action="store_true", default=self.default, help=self.help)
            return
        required = self.default is dataclasses.MISSING
        group.add_argument(
            f"--{self.name}",
            type=self.kind,
            nargs=self.count,
            choices=self.choices,
            metavar=self.metavar,
            required=required,
            default=None if required else self.default,
            help=self.help,
        )

    def check(self, value: Any) -> None:
        """Check that a number is finite and in the flag's range.

        Raises:
            OptionError: a number is not finite or out of range.
        """
        if self.kind not in (int, float) or value is None:
            return
        shown = list(value) if isinstance(value, tuple) else value
        for number in value if isinstance(value, tuple) else (value,):
            if not math.isfinite(number):
                without_limit = "; 1e9 never clips" if self.name == "max_grad_norm" else ""
                raise OptionError(f"--{self.name} got {shown!r}: give a finite number{without_limit}")
            if self.range is not None and not self.range.holds(number):
                raise OptionError(f"--{self.name} got {shown!r}: give {self.range.text}")


def flag(
    default: Any,
    help: str,
    *,
    resume: Resume,
    private: bool = False,
    secret: bool = False,
    range: Range | None = None,
    choices: typing.Sequence[str] | None = None,
    metavar: str | tuple[str, ...] | None = None,
    saves: str | None = None,
) -> Any:
    """Declare a flag as a field of an options dataclass; the arguments are the attributes of `Flag`.

    `default` is `dataclasses.MISSING` for a required flag. The type and the number of values come from the annotation:
    `int`, `str | None`, `tuple[float, ...]`, `tuple[int, int]`. `resume` has no default, so that each new flag must
    declare whether a resumed run may change it.
    """
    declared = {
        "help": help, "resume": resume, "is_private": private or secret, "is_secret": secret, "range": range,
        "choices": None if choices is None else tuple(choices), "metavar": metavar, "saves": saves,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata={"flag": declared})


def flags_of(group: type) -> Iterator[Flag]:
    """The flags that the options dataclass `group` declares, in order.

    Raises:
        TypeError: a field was not declared by `flag`, or its annotation is not supported on a command line.
    """
    annotations = typing.get_type_hints(group)
    for field in dataclasses.fields(group):
        if "flag" not in field.metadata:
            raise TypeError(f"{group.__name__}.{field.name} is not declared by `flag`")
        kind, count = _kind_and_count(annotations[field.name])
        yield Flag(field.name, kind, count, field.default, **field.metadata["flag"])


def _kind_and_count(annotation: Any) -> tuple[type, str | int | None]:
    """The type of each value and the number of values (as in `Flag.count`) for an annotation."""
    if isinstance(annotation, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not types.NoneType)
    if typing.get_origin(annotation) is tuple:
        first, *rest = typing.get_args(annotation)
        return first, "+" if rest == [...] else 1 + len(rest)
    if annotation not in (str, int, float, bool):
        raise TypeError(f"a flag cannot have the type {annotation}")
    return annotation, None

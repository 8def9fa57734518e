"""What a process of a distributed run holds and exchanges, in closed form from the shapes of the UNets' weights.

One iteration of one micro-batch: the student's forward and backward pass, one forward of the teacher, the gradients of
both players. Sharded weights are gathered for each pass over them and their gradients are reduced once. A parameter of
n rows is divided by rows, so that each of N processes stores ceil(n / N) of them; at many processes this padding is
what sharding costs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import torch
from diffusers import UNet2DConditionModel

from training.sharding.networks import gathered_together

GRADIENT, MOMENTS, AVERAGE = 4, 8, 4  # bytes a trainable number at rest, all of them in float32


@dataclass(frozen=True)
class Weight:
    """A parameter: its shape, bytes of a number as it is stored and as it is gathered, and whether it trains."""

    shape: tuple[int, ...]
    stored: int
    gathered: int
    trains: bool

    def padded(self, shards: int) -> int:
        """Numbers of all shards, the padding included."""
        rows, *rest = self.shape
        return -(-rows // shards) * shards * torch.Size(rest).numel()


@dataclass(frozen=True)
class Layout:
    """How processes divide the work: `copies` of the weights, each held by `shards` processes together."""

    name: str
    copies: int
    shards: int

    @property
    def processes(self) -> int:
        """Of the run."""
        return self.copies * self.shards


def layouts(processes: int, per_node: int) -> Iterable[Layout]:
    """Data parallelism, full sharding, and hybrid sharding within nodes where it differs from both."""
    yield Layout("DDP", processes, 1)
    if processes > 1:
        yield Layout("FSDP2", 1, processes)
    if processes > per_node:
        yield Layout("hybrid", processes // per_node, per_node)


@dataclass(frozen=True)
class Held:
    """Bytes that the process with the largest part holds.

    Attributes:
        student, teacher, gradients, optimizer, average: at rest. Gradients of DDP also have a copy in its buckets.
        gathered: whole weights of the two largest neighbouring groups, the computed one and the one after it.
    """

    student: int
    teacher: int
    gradients: int
    optimizer: int
    average: int
    gathered: int

    @property
    def total(self) -> int:
        """All of it, activations and frozen encoders excepted."""
        return self.student + self.teacher + self.gradients + self.optimizer + self.average + self.gathered


@dataclass(frozen=True)
class Exchanged:
    """Bytes of an iteration: what collectives are called with, and what a process sends for them in a ring.

    Attributes:
        gathered: results of all-gathers among the processes that hold one copy.
        reduced: whole gradients that are reduced and scattered among them.
        shards_reduced: gradients that copies all-reduce.
        heads: of the discriminator, all-reduced by all processes.
    """

    gathered: int
    reduced: int
    shards_reduced: int
    heads: int

    def sent(self, layout: Layout) -> tuple[float, float]:
        """Bytes that a process sends to those of its copy, and to those of other copies."""
        inner = (self.gathered + self.reduced) * (layout.shards - 1) / layout.shards
        outer = 2 * self.shards_reduced * (layout.copies - 1) / layout.copies
        heads = 2 * self.heads * (layout.processes - 1) / layout.processes
        return (inner + heads, outer) if layout.copies == 1 else (inner, outer + heads)


class Networks:
    """The weights of student and teacher by the groups that are gathered together.

    Args:
        student: whole; an adapter is already in it.
        teacher: another network, or None where the student without its adapter is the teacher.
        heads: parameters of the discriminator's heads.
        gathered: bytes of a number of the student's blocks as they are gathered, None for those that are stored.
        reduced: the same of their gradients.
    """

    def __init__(
        self,
        student: UNet2DConditionModel,
        teacher: UNet2DConditionModel | None,
        heads: int,
        gathered: int | None = None,
        use_ema: bool = False,
    ):
        self.student, self.heads, self.use_ema = _groups(student, gathered), heads, use_ema
        self.teacher = None if teacher is None else _groups(teacher, None)

    def held(self, layout: Layout) -> Held:
        """Memory of the process with the largest part."""
        n = layout.shards

        def stored(groups: Iterable[Sequence[Weight]]) -> int:
            return sum(weight.padded(n) // n * weight.stored for weight in chain(*groups))

        trainable = sum(weight.padded(n) // n for weight in chain(*self.student) if weight.trains)
        return Held(
            student=stored(self.student),
            teacher=stored(self.teacher or ()),
            gradients=trainable * GRADIENT * (2 if n == 1 and layout.copies > 1 else 1),
            optimizer=trainable * MOMENTS,
            average=trainable * AVERAGE * self.use_ema,
            gathered=0 if n == 1 else max(_neighbours(self.student, n), _neighbours(self.teacher or (), n)),
        )

    def exchanged(self, layout: Layout) -> Exchanged:
        """Bytes of an iteration."""
        n = layout.shards
        weights = list(chain(*self.student))
        student = sum(weight.padded(n) * weight.gathered for weight in weights)
        gradients = sum(weight.padded(n) * weight.gathered for weight in weights if weight.trains)
        teacher = student if self.teacher is None else sum(w.padded(n) * w.gathered for w in chain(*self.teacher))
        # Without sharding the gradients have the dtype of the weights.
        whole = sum(weight.padded(1) * weight.stored for weight in weights if weight.trains)
        return Exchanged(
            gathered=0 if n == 1 else 2 * student + teacher,
            reduced=0 if n == 1 else gradients,
            shards_reduced=0 if layout.copies == 1 else whole if n == 1 else gradients // n,
            heads=4 * self.heads if layout.processes > 1 else 0,
        )


def _groups(unet: UNet2DConditionModel, gathered: int | None) -> list[list[Weight]]:
    found: list[list[Weight]] = []
    seen: set[int] = set()
    for module, is_precise in gathered_together(unet):
        group = [p for p in module.parameters() if id(p) not in seen]
        seen.update(map(id, group))
        size = None if is_precise else gathered
        found.append([Weight(tuple(p.shape), p.itemsize, size or p.itemsize, p.requires_grad) for p in group])
    return found


def _neighbours(groups: Sequence[Sequence[Weight]], shards: int) -> int:
    sizes = [sum(weight.padded(shards) * weight.gathered for weight in group) for group in groups]
    return max((a + b for a, b in pairwise(sizes)), default=0)

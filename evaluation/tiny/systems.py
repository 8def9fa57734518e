"""The systems that are measured on the tiny world, and their figures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """A source of images.

    Attributes:
        name: `real`, `teacher` or `student`.
        steps: number of sampling steps; None for real images.
        guidance: guidance scale; values up to 1 mean no guidance; None for real images.
    """

    name: str
    steps: int | None
    guidance: float | None

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is used."""
        return self.guidance is not None and self.guidance > 1

    @property
    def network_calls(self) -> int:
        """Number of UNet evaluations per image; guidance takes two per step, and a real image has none."""
        return (self.steps or 0) * (2 if self.guided else 1)

    def __str__(self) -> str:
        """E.g. `teacher, 25 steps, guidance 2`."""
        steps = f", {self.steps} step{'s' * (self.steps > 1)}" if self.steps else ""
        return self.name + steps + (f", guidance {self.guidance:g}" if self.guided else "")


@dataclass(frozen=True)
class SystemFigures(System):
    """The figures of one system.

    Attributes:
        fd: Frechet distance to the held-out images, in the evaluator's features.
        alignment: fraction of images in [0, 1] whose class according to the evaluator is that of the caption.
        diversity: mean distance of two images of one caption, in the evaluator's features; None for real images if
            each has a different caption.
        seconds_per_image: latency at batch size 1; None for real images.
    """

    fd: float
    alignment: float
    diversity: float | None
    seconds_per_image: float | None

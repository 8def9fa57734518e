"""What a stage has to reach on held-out images before the next one begins."""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch

from examples.tiny.loop import Checkpoint


@dataclass(frozen=True)
class Gate:
    """A bound on one of a stage's figures.

    Attributes:
        figure: its name.
        bound: what it has to reach.
        advice: what to do if it is not reached.
        at_most: whether `bound` is an upper bound.
    """

    figure: str
    bound: float
    advice: str
    at_most: bool = False

    def met(self, figures: dict[str, float]) -> bool:
        """Whether `figures` pass; a figure that is not a number does not."""
        return (operator.le if self.at_most else operator.ge)(figures[self.figure], self.bound)

    def report(self, figures: dict[str, float]) -> str:
        """The figure beside its bound, in words."""
        side = "at most" if self.at_most else "at least"
        return f"{self.figure} is {figures[self.figure]:.4g} on held-out images and has to be {side} {self.bound:.4g}"


class GateMissedError(ValueError):
    """A stage has not reached its gate within its rounds."""


@dataclass(frozen=True)
class Course:
    """How a stage is trained: one round, then shorter ones for as long as a gate is missed.

    Attributes:
        stage: its name.
        iterations: of the first round; later rounds have half as many.
        max_rounds: how many rounds it may have.
        enforce: whether a gate that is still missed then ends the build.
        checkpoint: where the training is saved.
    """

    stage: str
    iterations: int
    max_rounds: int
    enforce: bool
    checkpoint: Checkpoint

    def run(
        self,
        train: Callable[[int, int], None],
        measure: Callable[[], dict[str, float]],
        gates: tuple[Gate, ...],
    ) -> dict[str, float]:
        """Alternate `train(part, iterations)` and `measure()`. Returns the last figures and the number of rounds.

        Raises:
            GateMissedError: a gate is missed after the last round. The checkpoint stays: called again with more
                rounds, the training goes on.
        """
        found = self.checkpoint.load()
        part = found["part"] if found else 0
        while True:
            train(part, self.iterations if part == 0 else max(1, self.iterations // 2))
            with torch.random.fork_rng(devices=[]):
                figures = measure()
            missed = [gate for gate in gates if not gate.met(figures)]
            if not missed:
                break
            reports = "; ".join(gate.report(figures) for gate in missed)
            if part + 1 >= self.max_rounds:
                if self.enforce:
                    raise GateMissedError(self._explain(reports, missed[0]))
                print(f"{self.stage}: {reports}", flush=True)
                break
            part += 1
            print(f"{self.stage}: {reports}; round {part + 1} of {self.max_rounds} begins", flush=True)
        return {**figures, "rounds": part + 1}

    def _explain(self, reports: str, gate: Gate) -> str:
        rounds = f"{self.max_rounds} round{'s' if self.max_rounds > 1 else ''}"
        return (
            f"{self.stage}: {reports}, after {rounds}. {gate.advice}; or train it longer with "
            f"--max_rounds {self.max_rounds + 2}, or take it as it is with --gates report"
        )

"""The paper's conclusions from Table 1 as rules on figures. Each holds, does not hold, or is not decided.

The rules compare means over seeds with twice the standard error of their difference (Welch). A smaller difference, or
one seed, decides nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev, variance

from evaluation.ablations.tables import DEFAULT

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"
MARGIN = 2.0  # standard errors of a difference
COLLAPSE = 3.0  # multiple of the default's distance; the paper's collapsed rows have 14 and 15 times its distance
LOWER_IS_BETTER = {"distance": True, "agreement": False}


@dataclass(frozen=True)
class Sample:
    """The values of one figure for several seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return mean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None for one seed."""
        return stdev(self.values) if len(self.values) > 1 else None


Figure = Callable[[str, str, int], Sample | None]  # maps (run, key, sampling steps) to the measured values


def lead(a: Sample, b: Sample, key: str) -> tuple[float, float]:
    """The difference by which the mean of `a` is better than that of `b`, and the margin that it has to exceed."""
    difference = b.mean - a.mean if LOWER_IS_BETTER[key] else a.mean - b.mean
    if min(len(a.values), len(b.values)) < 2:
        return difference, float("inf")
    error = sqrt(sum(variance(sample.values) / len(sample.values) for sample in (a, b)))
    return difference, MARGIN * error


def better(a: Sample, b: Sample, key: str) -> str:
    """Check that `a` is better than `b`."""
    difference, margin = lead(a, b, key)
    if abs(difference) <= margin:
        return OPEN
    return HOLDS if difference > 0 else FAILS


def not_worse(a: Sample, b: Sample, key: str) -> str:
    """Check that `b` is not better than `a` by more than the margin; not decided with one seed."""
    difference, margin = lead(a, b, key)
    if margin == float("inf"):
        return OPEN
    return FAILS if difference < -margin else HOLDS


def collapses(a: Sample, b: Sample, key: str) -> str:
    """Check that the mean distance of `a` is at least `COLLAPSE` times that of `b`, without a margin."""
    return HOLDS if a.mean >= COLLAPSE * b.mean else FAILS


def conclude(verdicts: Iterable[str | None]) -> str | None:
    """Combine the verdicts of several comparisons, all of which must hold. None if nothing was measured."""
    verdicts = [verdict for verdict in verdicts if verdict is not None]
    if not verdicts:
        return None
    return next((verdict for verdict in (FAILS, OPEN) if verdict in verdicts), HOLDS)


@dataclass(frozen=True)
class Comparison:
    """One comparison of two runs: `rule(a, b)` for a figure, at given numbers of sampling steps."""

    rule: Callable[[Sample, Sample, str], str]
    a: str
    b: str
    key: str
    steps: tuple[int, int] = (1, 1)

    def verdict(self, figure: Figure) -> str | None:
        """Result of the comparison; None if a run is missing."""
        a, b = figure(self.a, self.key, self.steps[0]), figure(self.b, self.key, self.steps[1])
        return None if a is None or b is None else self.rule(a, b, self.key)


@dataclass(frozen=True)
class Finding:
    """A conclusion of the paper or of this project, its table, and the comparisons that it consists of."""

    table: str
    text: str
    comparisons: tuple[Comparison, ...]

    def verdict(self, figure: Figure) -> str | None:
        """Combined result of all possible comparisons; None if there are none."""
        return conclude(comparison.verdict(figure) for comparison in self.comparisons)


def _than(rule: Callable, a: str, b: str, *keys: str) -> tuple[Comparison, ...]:
    return tuple(Comparison(rule, a, b, key) for key in keys)


FINDINGS = (
    Finding("a", "CLIP's objective makes a worse feature network than DINOv2's (distance, agreement)",
            _than(better, DEFAULT, "features-clip-l", "distance", "agreement")),
    Finding("a", "A larger DINOv2 is no better", _than(not_worse, DEFAULT, "features-dinov2-l", "distance")),
    Finding("a", "DINOv2 is better than DINOv1", _than(better, DEFAULT, "features-dinov1-s", "distance", "agreement")),
    Finding("a", "(ours) F must be pretrained", _than(better, DEFAULT, "features-untrained", "distance")),
    Finding("b", "c_text raises agreement", _than(better, "condition-text", "condition-none", "agreement")),
    Finding("b", "c_img raises agreement more than c_text does",
            _than(better, "condition-image", "condition-text", "agreement")),
    Finding("b", "c_text with c_img is best: better than neither (distance, agreement), no worse than either",
            (*_than(better, DEFAULT, "condition-none", "distance", "agreement"),
             *_than(not_worse, DEFAULT, "condition-text", "distance", "agreement"),
             *_than(not_worse, DEFAULT, "condition-image", "distance", "agreement"))),
    Finding("c", "A randomly initialised student collapses", _than(collapses, "student-random", DEFAULT, "distance")),
    Finding("d", "Distillation alone collapses", _than(collapses, "loss-distillation", DEFAULT, "distance")),
    Finding("d", "The adversarial loss alone is worse than both losses (distance, agreement)",
            _than(better, DEFAULT, "loss-adversarial", "distance", "agreement")),
    Finding("d", "SDS weighting raises agreement", _than(better, "loss-sds", DEFAULT, "agreement")),
    Finding("d", "NFSD weighting raises agreement", _than(better, "loss-nfsd", DEFAULT, "agreement")),
    Finding("d", "Exponential weighting has a lower distance than SDS and NFSD",
            (*_than(better, DEFAULT, "loss-sds", "distance"), *_than(better, DEFAULT, "loss-nfsd", "distance"))),
    Finding("e", "SDXL as the teacher raises agreement of either student",
            (*_than(better, "teacher-sd-of-sdxl", "teacher-sd-of-sd", "agreement"),
             *_than(better, "teacher-sdxl-of-sdxl", "teacher-sdxl-of-sd", "agreement"))),
    Finding("f", "One teacher step suffices: 2 and 4 have no lower distance",
            (*_than(not_worse, DEFAULT, "teacher-steps-2", "distance"),
             *_than(not_worse, DEFAULT, "teacher-steps-4", "distance"))),
    Finding("ours", "(ours) Real images through the autoencoder lower the distance",
            _than(better, DEFAULT, "ours-real-as-they-are", "distance")),
    Finding("ours", "(ours) Virtual groups of both kinds do", _than(better, DEFAULT, "ours-virtual-batch", "distance")),
    Finding("ours", "(ours) Leaving out DiffAugment does", _than(better, DEFAULT, "ours-diffaugment", "distance")),
    Finding("ours", "(ours) Drawing s = 999 more often does",
            _than(better, DEFAULT, "ours-even-timesteps", "distance")),
    Finding("steps", "More sampling steps do not hurt: 2 and 4 are no worse in distance than 1",
            tuple(Comparison(not_worse, DEFAULT, DEFAULT, "distance", (steps, 1)) for steps in (2, 4))),
)  # fmt: skip

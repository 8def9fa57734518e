"""Selection of the student's timesteps that a call visits."""

import math
from collections.abc import Sequence

DEFAULT_STUDENT_TIMESTEPS = (249, 499, 749, 999)


def spread_timesteps(student_timesteps: Sequence[int], num_inference_steps: int) -> list[int]:
    """Choose `num_inference_steps` of the student's timesteps, evenly by rank, in descending order from the largest.

    This is "trailing" spacing over the student's set instead of 0..T-1. For the default set of four, 1, 2 and 4
    steps are those of a stock scheduler with trailing spacing: [999], [999, 499] and [999, 749, 499, 249]. Three steps
    are [999, 749, 249], because the student was not trained at stock's [999, 666, 332].

    Args:
        student_timesteps: training indices in [0, T - 1], in any order.
        num_inference_steps: from 1 to the number of `student_timesteps`.

    Raises:
        ValueError: `num_inference_steps` is out of range.
    """
    ascending, n = sorted(student_timesteps), num_inference_steps
    if not 1 <= n <= len(ascending):
        raise ValueError(
            f"num_inference_steps={n} is out of range: this student was trained at the {len(ascending)} timesteps "
            f"{ascending}. Use 1 to {len(ascending)}."
        )
    last = len(ascending) - 1
    return [ascending[last - (2 * i * len(ascending) + n) // (2 * n)] for i in range(n)]  # i N/n, rounded half up


def fewest_steps(strength: float, most: int) -> int:
    """Return the smallest number of steps up to `most` of which `strength` leaves at least one, else `most`."""
    return next((n for n in range(1, most) if int(strength * n) >= 1), most)


def check_strength(strength: float, num_inference_steps: int) -> None:
    """Check that `strength` leaves at least one of `num_inference_steps` steps.

    Raises:
        ValueError: unless 0 < strength <= 1 and strength * num_inference_steps >= 1.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength={strength} is out of range: it must be in (0, 1].")
    if int(strength * num_inference_steps) < 1:
        least = math.ceil(100 / num_inference_steps) / 100  # rounded up, so that the product is not below 1
        raise ValueError(
            f"strength={strength} with num_inference_steps={num_inference_steps} leaves no step: "
            f"strength * num_inference_steps must be at least 1. Use a strength of at least {least}, or more steps."
        )

"""Measures a text-to-image pipeline: how far from real images, how true to the caption, how varied, how fast."""

from evaluation.generation.sampling import sample, seconds_per_image
from evaluation.metrics import Evaluator, alignment, diversity, frechet_distance

__all__ = ["Evaluator", "alignment", "diversity", "frechet_distance", "sample", "seconds_per_image"]

"""Measures a text-to-image pipeline: how far from real images, how true to the caption, how varied, how fast."""

from evaluation.metrics.figures import Evaluator, alignment, diversity, frechet_distance
from evaluation.generation.sampling import sample, seconds_per_image

__all__ = ["Evaluator", "alignment", "diversity", "frechet_distance", "sample", "seconds_per_image"]

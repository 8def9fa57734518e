"""Evaluation of text-to-image pipelines: distance to real images, agreement with captions, diversity and speed."""

from evaluation.generation.sampling import sample, seconds_per_image
from evaluation.metrics import Evaluator, alignment, diversity, frechet_distance

__all__ = ["Evaluator", "alignment", "diversity", "frechet_distance", "sample", "seconds_per_image"]

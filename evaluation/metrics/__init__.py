"""Distances, scores and diversity of generated images: encoders, pure functions of their features, and real images."""

from evaluation.metrics.figures import (
    Evaluator,
    alignment,
    clip_score,
    diversity,
    frechet_distance,
    pooled,
    precision_recall_coverage,
)

__all__ = [
    "Evaluator",
    "alignment",
    "clip_score",
    "diversity",
    "frechet_distance",
    "pooled",
    "precision_recall_coverage",
]

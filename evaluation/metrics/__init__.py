"""Metrics of generated images: encoders, metrics as functions of their features, and reference images."""

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

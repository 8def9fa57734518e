"""Sampling: the pipelines for ADD students and the stock scheduler they are published with."""

from pipelines.pipeline_add import DEFAULT_STUDENT_TIMESTEPS, ADDPipeline, spread_timesteps
from pipelines.schedulers import student_scheduler

__all__ = ["DEFAULT_STUDENT_TIMESTEPS", "ADDPipeline", "spread_timesteps", "student_scheduler"]

"""Sampling: the pipelines for ADD students and the stock scheduler they are published with."""

from pipelines.few_step import DEFAULT_STUDENT_TIMESTEPS, spread_timesteps
from pipelines.pipeline_add import ADDPipeline
from pipelines.pipeline_add_sdxl import ADDXLPipeline
from pipelines.schedulers import student_scheduler

# `ADDPipeline.from_pretrained` loads a student of either family; a class that names its family loads that one alone.
ADDPipeline._other_families = {ADDXLPipeline._stock_class.__name__: ADDXLPipeline}

__all__ = ["DEFAULT_STUDENT_TIMESTEPS", "ADDPipeline", "ADDXLPipeline", "spread_timesteps", "student_scheduler"]

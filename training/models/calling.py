"""Calls a pipeline of any class."""

from collections.abc import Callable
from typing import Any, Protocol, cast

from diffusers import DiffusionPipeline


class PipelineOutput(Protocol):
    """What a pipeline returns.

    Attributes:
        images: PIL images or a tensor, as `output_type` asks.
    """

    images: Any


def call_pipeline(pipeline: DiffusionPipeline, *prompts: Any, **settings: Any) -> PipelineOutput:
    """`pipeline(*prompts, **settings)`. `DiffusionPipeline`, which loading returns, leaves `__call__` to subclasses."""
    return cast(Callable[..., PipelineOutput], pipeline)(*prompts, **settings)

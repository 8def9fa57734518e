"""Pipelines for ADD students, and the stock scheduler that students are published with."""

from typing import Any

from diffusers.pipelines import auto_pipeline

from .pipeline_add import ADDPipeline
from .pipeline_add_sd3 import ADDSD3Pipeline
from .pipeline_add_sdxl import ADDXLPipeline
from .schedulers import flow_student_scheduler, student_scheduler
from .timesteps import DEFAULT_STUDENT_TIMESTEPS, spread_timesteps

# `ADDPipeline.from_pretrained` loads a student of any family; a class that names its family loads only that one.
ADDPipeline._other_families = {kind._stock_class.__name__: kind for kind in (ADDXLPipeline, ADDSD3Pipeline)}

# `AutoPipelineFor...from_pipe` looks up the name of a pipeline's class in these three tables and ignores inheritance;
# diffusers has no function to register a class. Each of our classes supports all three tasks, so it is its own
# counterpart. Entries are only added: `from_pretrained` still uses the stock class in a model_index.json.
_tables: tuple[Any, ...] = (
    auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
    auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING,
)
for _table in _tables:
    _table.update({"add": ADDPipeline, "add-xl": ADDXLPipeline, "add-3": ADDSD3Pipeline})

__all__ = [
    "DEFAULT_STUDENT_TIMESTEPS",
    "ADDPipeline",
    "ADDSD3Pipeline",
    "ADDXLPipeline",
    "flow_student_scheduler",
    "spread_timesteps",
    "student_scheduler",
]

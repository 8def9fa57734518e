"""Loading of diffusers text-to-image pipelines."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline, UNet2DConditionModel

from evaluation.errors import EvaluationError, explain_unavailable

LORA_FILE = "pytorch_lora_weights.safetensors"
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class PipelineSpec:
    """A pipeline to load, and changes to it.

    Attributes:
        model: Hub id or folder.
        revision: branch, tag or commit of the Hub repo.
        variant: variant of the weight files, such as `fp16`.
        torch_dtype: precision of the weights, one of `DTYPES`.
        unet: id of a UNet that replaces the pipeline's own, such as LCM for SDXL.
        lora_weights: id of LoRA weights to load, such as LCM-LoRA.
        scheduler: name of a diffusers class; None for the pipeline's own scheduler.
        scheduler_args: updates of the scheduler's config.
        safety_checker: whether to keep the safety checker, which blackens images and thereby distorts metrics.
    """

    model: str
    revision: str | None = None
    variant: str | None = None
    torch_dtype: str = "float32"
    unet: str | None = None
    lora_weights: str | None = None
    scheduler: str | None = None
    scheduler_args: dict[str, Any] = field(default_factory=dict)
    safety_checker: bool = True

    def __post_init__(self):
        """Check the folder and the scheduler before anything is loaded.

        Raises:
            EvaluationError: the folder does not contain a pipeline, or the scheduler does not exist.
        """
        folder = Path(self.model)
        if (folder.exists() or folder.is_absolute()) and not (folder / "model_index.json").exists():
            if (folder / LORA_FILE).exists():
                raise EvaluationError(
                    f"--model {self.model}: the folder only contains an adapter; give its base as --model, and this "
                    "folder as --lora_weights."
                )
            raise EvaluationError(
                f"--model {self.model}: the folder has no model_index.json; give the folder or Hub id of a pipeline."
            )
        if self.scheduler and not self.scheduler.endswith("Scheduler"):
            raise EvaluationError(
                f"--scheduler {self.scheduler}: give a scheduler class of diffusers, e.g. DPMSolverMultistepScheduler."
            )
        if self.scheduler and not hasattr(diffusers, self.scheduler):
            raise EvaluationError(f"--scheduler {self.scheduler}: diffusers {diffusers.__version__} has no such class.")


def load_pipeline(spec: PipelineSpec, device: str) -> DiffusionPipeline:
    """Load a pipeline for text-to-image, or as the class in its repo if diffusers does not map it to this task.

    Code from a repo is never run; a pipeline class that is not in diffusers is refused.

    Raises:
        EvaluationError: the repo does not exist or cannot be reached.
    """
    try:
        pipeline = _load_parts(spec)
    except OSError as error:
        parts = "".join(f", --{flag} {value}" for flag in ("unet", "variant") if (value := getattr(spec, flag)))
        raise EvaluationError(f"--model {spec.model}{parts}: {explain_unavailable(spec.model, error)}.") from error
    if spec.scheduler or spec.scheduler_args:
        kind = getattr(diffusers, spec.scheduler) if spec.scheduler else type(pipeline.scheduler)
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **spec.scheduler_args)
    if spec.lora_weights:
        _load_lora(pipeline, spec.lora_weights)
    if not spec.safety_checker and getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _load_lora(pipeline: DiffusionPipeline, lora_weights: str) -> None:
    try:
        pipeline.load_lora_weights(lora_weights)
    except OSError as error:
        raise EvaluationError(f"--lora_weights {lora_weights}: {explain_unavailable(lora_weights, error)}.") from error


def _load_parts(spec: PipelineSpec) -> DiffusionPipeline:
    where = {"revision": spec.revision, "variant": spec.variant, "dtype": getattr(torch, spec.torch_dtype)}
    parts = {}
    if spec.unet:
        parts["unet"] = UNet2DConditionModel.from_pretrained(spec.unet, dtype=where["dtype"], variant=spec.variant)
    try:
        return AutoPipelineForText2Image.from_pretrained(spec.model, **where, **parts)
    except ValueError as error:
        if "AutoPipeline" not in str(error):
            raise
        return DiffusionPipeline.from_pretrained(spec.model, **where, **parts)

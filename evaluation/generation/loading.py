"""Loads any diffusers text-to-image pipeline by the id of its repository."""

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
    """Which pipeline, and what is changed in it.

    Attributes:
        model: Hub id or folder.
        revision: branch, tag or commit on the Hub.
        variant: of the weight files, such as `fp16`.
        torch_dtype: precision of the weights, one of `DTYPES`.
        unet: id of a UNet that replaces the pipeline's own, as LCM is published for SDXL.
        lora_weights: id of LoRA weights to load on top, as LCM-LoRA.
        scheduler: class name of diffusers; None for the pipeline's own.
        scheduler_args: replaces entries of the scheduler's configuration.
        safety_checker: False removes it. It blackens images, and no metric should see those.
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
        """Raises: EvaluationError: a folder without a pipeline, or no such scheduler; before anything is loaded."""
        folder = Path(self.model)
        if (folder.exists() or folder.is_absolute()) and not (folder / "model_index.json").exists():
            if (folder / LORA_FILE).exists():
                raise EvaluationError(
                    f"--model {self.model}: holds an adapter alone; give its base as --model, and this folder as "
                    "--lora_weights."
                )
            raise EvaluationError(
                f"--model {self.model}: no model_index.json there; give a pipeline's folder or Hub id."
            )
        if self.scheduler and not self.scheduler.endswith("Scheduler"):
            raise EvaluationError(
                f"--scheduler {self.scheduler}: a class of diffusers, e.g. DPMSolverMultistepScheduler."
            )
        if self.scheduler and not hasattr(diffusers, self.scheduler):
            raise EvaluationError(f"--scheduler {self.scheduler}: diffusers {diffusers.__version__} has no such class.")


def load_pipeline(spec: PipelineSpec, device: str) -> DiffusionPipeline:
    """Load the pipeline for text-to-image, or as what its repository names where diffusers has no such task for it.

    No code from a repository is run: a pipeline class that diffusers lacks is refused.

    Raises:
        EvaluationError: no such repository, or it cannot be reached.
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

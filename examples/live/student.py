"""Loading of a student for the live page: a full pipeline, or an adapter with its base."""

import json
from pathlib import Path

import torch
from diffusers import DDPMScheduler, DiffusionPipeline

from evaluation.errors import explain_unavailable
from pipelines import ADDPipeline
from training.errors import OptionError

INDEX, LORA, RUN_FILE = "model_index.json", "pytorch_lora_weights.safetensors", "add_run.json"


def load_student(
    model: str, base: str | None = None, tiny_vae: str | None = None, compile: bool = False, advice: str = ""
) -> DiffusionPipeline:
    """Load a student, move it to the accelerator if there is one, and optimize it.

    Args:
        model: folder or Hub id of a published student or adapter.
        base: model that an adapter was trained on; None for a full pipeline, and for an adapter whose folder names it.
        tiny_vae: folder or Hub id of an AutoencoderTiny.
        compile: whether to compile UNet and decoder.
        advice: sentence for the error message if the model does not exist.

    Raises:
        OptionError: a model cannot be loaded; the message names it and the fix.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    base = base or _base_of_adapter(model)
    pipe = _load("--base" if base else "MODEL", base or model, dtype, advice)
    if base:
        try:
            pipe.scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
            pipe.load_lora_weights(model)
        except (OSError, ValueError) as error:
            raise OptionError(
                f"MODEL {model}: {explain_unavailable(model, error)}. It is not an adapter for {base}."
            ) from error
    try:
        return pipe.to(device).optimize(compile=compile, tiny_vae=tiny_vae)
    except (OSError, ValueError) as error:
        raise OptionError(f"--tiny_vae {tiny_vae}: {explain_unavailable(str(tiny_vae), error)}.") from error


def _base_of_adapter(model: str) -> str | None:
    """The base of a folder that only contains an adapter; None for anything else."""
    folder = Path(model)
    if (folder / INDEX).exists() or not (folder / LORA).exists():
        return None
    run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8")) if (folder / RUN_FILE).exists() else {}
    if not run.get("base_model_on_hub"):
        name = f", {run['base_model']}," if "base_model" in run else ""
        raise OptionError(f"MODEL {model}: it is an adapter; give the folder of its base{name} with --base.")
    return run["base_model"]


def _load(flag: str, model: str, dtype: torch.dtype, advice: str) -> DiffusionPipeline:
    try:
        return ADDPipeline.from_pretrained(model, dtype=dtype)
    except (OSError, ValueError) as error:
        problem = explain_unavailable(model, error)
        raise OptionError(f"{flag} {model}: {problem}. {advice}".strip()) from error

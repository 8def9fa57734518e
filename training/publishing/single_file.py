"""One file for front ends such as ComfyUI: a student's folder in the layout of the original checkpoints.

    python -m training.single_file OUTPUT_DIR --output student.safetensors --dtype float16

The names are those of `single_file_names`. Scheduler and tokenizers have no place in such a file; every front end
brings its own.
"""

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from training.publishing.single_file_names import Weights, original_weights

FAMILIES = {
    "StableDiffusionPipeline": ("unet", "vae", "text_encoder"),
    "StableDiffusionXLPipeline": ("unet", "vae", "text_encoder", "text_encoder_2"),
}
DTYPES = ("float32", "float16", "bfloat16")


def export_single_file(folder: str | Path, output: str | Path, dtype: str | None = None) -> Path:
    """Write the student in `folder`, in diffusers' layout, as the one file `output`.

    Args:
        folder: what a training run leaves, or any stock pipeline of Stable Diffusion 1, 2 or SDXL.
        output: ends in `.safetensors`; replaced whole or not at all.
        dtype: of all weights, one of `DTYPES`. None keeps each component's own.

    Returns:
        `output`.

    Raises:
        ValueError: before any weight is read, for a folder or a name that won't do; and for a network that the
            original layout has no names for.
    """
    folder, output = Path(folder), Path(output)
    names = _check(folder, output, dtype)
    parts = {name: (_read_json(folder / name / "config.json"), _read_weights(folder / name)) for name in names}
    weights = original_weights(parts)
    if dtype is not None:
        weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    weights |= _markers(scheduler, sdxl="text_encoder_2" in names)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    save_file({k: v.contiguous() for k, v in weights.items()}, partial, _metadata(scheduler))
    shutil.copymode(folder / "model_index.json", partial)  # safetensors makes files that only their owner may read
    os.replace(partial, output)
    return output


def _markers(scheduler: Mapping[str, Any], sdxl: bool) -> Weights:
    """Empty tensors by whose names front ends know an SDXL that doesn't predict noise. SD 2's they tell by itself."""
    if not sdxl or scheduler["prediction_type"] != "v_prediction":
        return {}
    markers = ["v_pred"] + ["ztsnr"] * bool(scheduler.get("rescale_betas_zero_snr"))
    return {name: torch.empty(0) for name in markers}


def _metadata(scheduler: Mapping[str, Any]) -> dict[str, str]:
    timesteps = scheduler.get("_student_timesteps", [])
    return {
        "format": "pt",
        "modelspec.prediction_type": {"v_prediction": "v"}.get(scheduler["prediction_type"], "epsilon"),
        "student_timesteps": ",".join(map(str, timesteps)),
    }


def _check(folder: Path, output: Path, dtype: str | None) -> tuple[str, ...]:
    """The names of the components to write, once all that the command line says is known to be right."""
    if output.suffix != ".safetensors":
        raise ValueError(f"--output={output} must end in .safetensors: front ends go by the name.")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype={dtype} must be one of {', '.join(DTYPES)}, or left out to keep the weights' own.")
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"{folder} holds no model_index.json, so no whole model to write in one file. A LoRA alone is such a file "
            "already: pytorch_lora_weights.safetensors."
        )
    found = _read_json(folder / "model_index.json")["_class_name"]
    if found not in FAMILIES:
        raise ValueError(f"{folder} holds a {found}; the single-file layout is that of {' and '.join(FAMILIES)}.")
    prediction = _read_json(folder / "scheduler" / "scheduler_config.json")["prediction_type"]
    if prediction == "sample":
        raise ValueError(f"{folder} predicts the image itself (prediction_type='sample'), which no front end samples.")
    return FAMILIES[found]


def _read_weights(folder: Path) -> Weights:
    """A component's weights, of one file or of shards."""
    for stem in ("diffusion_pytorch_model", "model"):
        index = folder / f"{stem}.safetensors.index.json"
        files = set(_read_json(index)["weight_map"].values()) if index.is_file() else {f"{stem}.safetensors"}
        if all((folder / file).is_file() for file in files):
            return {name: tensor for file in sorted(files) for name, tensor in load_file(folder / file).items()}
    raise ValueError(f"{folder} holds no weights in safetensors (a variant such as fp16 isn't read). Save it as such.")


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m training.single_file", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="A run's --output_dir, or any folder in diffusers' layout.")
    parser.add_argument("--output", type=Path, required=True, help="The file to write, .safetensors.")
    parser.add_argument("--dtype", choices=DTYPES, default=None, help="Of all weights. By default they keep theirs.")
    args = parser.parse_args(argv)
    try:
        file = export_single_file(args.folder, args.output, args.dtype)
    except ValueError as error:
        parser.error(str(error))
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

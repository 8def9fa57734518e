"""One file for front ends such as ComfyUI: a student's folder in the layout of the original checkpoints.

    python -m training.single_file OUTPUT_DIR --output student.safetensors --dtype float16

The names are those of `names`. Scheduler and tokenizers have no place in such a file; every front end
brings its own.
"""

import argparse
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from training.checkpoints.manifest import sync
from training.command import command_name, run_command
from training.errors import OptionError, UserError
from training.publishing.folder.published_folder import published_files
from training.publishing.folder.verification import FILES
from training.publishing.single_file.names import Weights, original_weights

FAMILIES = {
    "StableDiffusionPipeline": ("unet", "vae", "text_encoder"),
    "StableDiffusionXLPipeline": ("unet", "vae", "text_encoder", "text_encoder_2"),
}
DTYPES = ("float32", "float16", "bfloat16")
MARK = "student_timesteps"  # a key of the file's metadata that only an export has


class ExportError(UserError):
    """The single file cannot be written."""


def export_single_file(folder: str | Path, output: str | Path, dtype: str | None = None) -> Path:
    """Write the student in `folder`, in diffusers' layout, as the one file `output`.

    Args:
        folder: what a training run leaves, or any stock pipeline of Stable Diffusion 1, 2 or SDXL.
        output: ends in `.safetensors`; a former export there is replaced, whole or not at all.
        dtype: of all weights, one of `DTYPES`. None keeps each component's own.

    Returns:
        `output`.

    Raises:
        OptionError: before any weight is read, for a folder or a name that will not do, or a file that is no former
            export; and for a network that the original layout has no names for.
        PublishError: the student is damaged.
        ExportError: the file cannot be written, or does not read back.
    """
    folder, output = Path(folder), Path(output)
    names = _check(folder, output, dtype)
    if (folder / FILES).is_file():  # a student: damaged weights are not exported
        published_files(folder)
    parts = {name: (_read_json(folder / name / "config.json"), _read_weights(folder / name)) for name in names}
    weights = original_weights(parts)
    if dtype is not None:
        weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    weights |= _markers(scheduler, sdxl="text_encoder_2" in names)
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    partial = output.with_name(f".{output.stem}-{uuid.uuid4().hex[:8]}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, partial, _metadata(scheduler))
        shutil.copymode(folder / "model_index.json", partial)  # safetensors makes files that only their owner may read
        sync(partial)
        _verify(partial, weights)
        check_export_file(output)  # hours may have passed since it was looked at
        os.replace(partial, output)
        sync(output.parent)
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"{output} cannot be written: {error}. What was there before is as it was; make room, or name a file in a "
            "folder that is writable"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return output


def check_export_file(output: str | Path, flag: str = "--output") -> None:
    """Refuse a file that an export would overwrite and that is not an export itself.

    Args:
        output: where the export goes.
        flag: that named it.

    Raises:
        OptionError: the file is there and has no metadata of an export, or its name is not that of such a file.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise OptionError(f"{flag} got {str(output)!r}: it must end in .safetensors, since front ends go by the name")
    if output.is_dir():
        raise OptionError(f"{flag} got {str(output)!r}: this is a folder; name a file in it")
    if output.exists() and not is_export(output):
        raise OptionError(
            f"{flag} got {str(output)!r}: this file exists and is not an export of a student, so it is not "
            "overwritten. Name another file, or move this one away"
        )


def is_export(file: Path) -> bool:
    """Whether `file` is one that `export_single_file` wrote, by its metadata."""
    try:
        with safe_open(file, "pt") as opened:
            return MARK in (opened.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _verify(file: Path, weights: Weights) -> None:
    """Compare what is on the disk with what was to be written, bit for bit."""
    with safe_open(file, "pt") as opened:
        if set(opened.keys()) != weights.keys():
            raise SafetensorError("it does not read back: its names are not those that were written")
        for name, tensor in weights.items():
            found = opened.get_tensor(name)
            same = found.shape == tensor.shape and found.dtype == tensor.dtype
            if not same or not torch.equal(_bytes(found), _bytes(tensor)):
                raise SafetensorError(f"it does not read back: {name} is not what was written")


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)  # a NaN equals itself


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
        MARK: ",".join(map(str, timesteps)),
    }


def _check(folder: Path, output: Path, dtype: str | None) -> tuple[str, ...]:
    """The names of the components to write, once all that the command line says is known to be right."""
    check_export_file(output)
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"--dtype={dtype} must be one of {', '.join(DTYPES)}, or left out to keep the weights' own.")
    if not (folder / "model_index.json").is_file():
        raise OptionError(
            f"{folder} holds no model_index.json, so no whole model to write in one file. A LoRA alone is such a file "
            "already: pytorch_lora_weights.safetensors."
        )
    found = _read_json(folder / "model_index.json")["_class_name"]
    if found not in FAMILIES:
        raise OptionError(f"{folder} holds a {found}; the single-file layout is that of {' and '.join(FAMILIES)}.")
    prediction = _read_json(folder / "scheduler" / "scheduler_config.json")["prediction_type"]
    if prediction == "sample":
        raise OptionError(f"{folder} predicts the image itself (prediction_type='sample'), which no front end samples.")
    return FAMILIES[found]


def _read_weights(folder: Path) -> Weights:
    """A component's weights, of one file or of shards."""
    for stem in ("diffusion_pytorch_model", "model"):
        index = folder / f"{stem}.safetensors.index.json"
        files = set(_read_json(index)["weight_map"].values()) if index.is_file() else {f"{stem}.safetensors"}
        if all((folder / file).is_file() for file in files):
            try:
                return {name: tensor for file in sorted(files) for name, tensor in load_file(folder / file).items()}
            except (OSError, SafetensorError) as error:
                raise OptionError(f"the weights in {folder} are damaged or cut short: {error}") from error
    raise OptionError(f"{folder} holds no weights in safetensors (a variant such as fp16 isn't read). Save it as such.")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{file} cannot be read: {error}. Give a folder in diffusers' layout") from error


def make_parser() -> argparse.ArgumentParser:
    """The flags of `python -m training.single_file`."""
    parser = argparse.ArgumentParser(
        prog=command_name("training.single_file"), description="Export a student as one file."
    )
    parser.add_argument("folder", type=Path, help="A run's --output_dir, or any folder in diffusers' layout.")
    parser.add_argument("--output", type=Path, required=True, help="The file to write, .safetensors.")
    parser.add_argument("--dtype", choices=DTYPES, default=None, help="Type of all weights; they keep their own by "
                        "default.")  # fmt: skip
    return parser


def run(args: argparse.Namespace) -> None:
    """Export, and say how large the file is."""
    file = export_single_file(args.folder, args.output, args.dtype)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


def main(argv: Sequence[str] | None = None) -> None:
    """The command. A refusal ends it with one line."""
    run_command(make_parser(), argv, run)

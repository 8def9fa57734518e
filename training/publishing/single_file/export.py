"""Export of a student as one file in the layout of the original checkpoints, for front ends such as ComfyUI.

    python -m training.single_file OUTPUT_DIR --output student.safetensors --dtype float16

The tensors are renamed by `names`. The file contains no scheduler and no tokenizers, because front ends
have their own.
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
MARK = "student_timesteps"  # metadata key that identifies an export


class ExportError(UserError):
    """The single file cannot be written."""


def export_single_file(folder: str | Path, output: str | Path, dtype: str | None = None) -> Path:
    """Write the student in `folder`, in diffusers' layout, to the single file `output`.

    Args:
        folder: output folder of a training run, or any stock pipeline of Stable Diffusion 1, 2 or SDXL.
        output: path that ends in `.safetensors`; an existing export is replaced atomically.
        dtype: dtype of all weights, one of `DTYPES`. None keeps the dtype of each component.

    Returns:
        `output`.

    Raises:
        OptionError: the folder or the path cannot be used, or the path is a file that is not an export (checked before
            any weight is read); or the original layout has no names for a network's weights.
        PublishError: the student is damaged.
        ExportError: the file cannot be written, or its content is wrong when it is read back.
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
        shutil.copymode(folder / "model_index.json", partial)  # safetensors creates files that only the owner can read
        sync(partial)
        _verify(partial, weights)
        check_export_file(output)  # again, because the last check may have been hours ago
        os.replace(partial, output)
        sync(output.parent)
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"{output} cannot be written: {error}. Existing files were not changed; free disk space, or give a file in "
            "a writable folder"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return output


def check_export_file(output: str | Path, flag: str = "--output") -> None:
    """Refuse to overwrite a file that is not an export.

    Args:
        output: path of the export.
        flag: flag that names the path, for the error message.

    Raises:
        OptionError: the file exists and is not an export, or its name does not end in `.safetensors`.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise OptionError(f"{flag} got {str(output)!r}: it must end in .safetensors, because front ends require it")
    if output.is_dir():
        raise OptionError(f"{flag} got {str(output)!r}: this is a folder; give a file in it")
    if output.exists() and not is_export(output):
        raise OptionError(
            f"{flag} got {str(output)!r}: this file exists and is not an export of a student, so it is not "
            "overwritten. Give another file, or move this one away"
        )


def is_export(file: Path) -> bool:
    """Whether `file` was written by `export_single_file`, according to its metadata."""
    try:
        with safe_open(file, "pt") as opened:
            return MARK in (opened.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _verify(file: Path, weights: Weights) -> None:
    """Read the file and compare it with `weights`, bit for bit."""
    with safe_open(file, "pt") as opened:
        if set(opened.keys()) != weights.keys():
            raise SafetensorError("the file was not written correctly: it has other tensor names")
        for name, tensor in weights.items():
            found = opened.get_tensor(name)
            same = found.shape == tensor.shape and found.dtype == tensor.dtype
            if not same or not torch.equal(_bytes(found), _bytes(tensor)):
                raise SafetensorError(f"the file was not written correctly: {name} has another content")


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)  # as bytes, NaN is equal to itself


def _markers(scheduler: Mapping[str, Any], sdxl: bool) -> Weights:
    """Empty tensors whose names tell front ends that an SDXL model uses v-prediction. SD 2 does not need them."""
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
    """Check the arguments, and return the names of the components to write."""
    check_export_file(output)
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"--dtype got {dtype!r}: choose from {', '.join(DTYPES)}, or leave the flag out.")
    if not (folder / "model_index.json").is_file():
        raise OptionError(
            f"{folder} has no model_index.json, so it is not a full model that can be exported. A LoRA is already a "
            "single file: pytorch_lora_weights.safetensors."
        )
    found = _read_json(folder / "model_index.json")["_class_name"]
    if found not in FAMILIES:
        raise OptionError(f"{folder} is a {found}; only {' and '.join(FAMILIES)} have a single-file layout.")
    prediction = _read_json(folder / "scheduler" / "scheduler_config.json")["prediction_type"]
    if prediction == "sample":
        raise OptionError(f"{folder} has prediction_type='sample', which front ends do not support.")
    return FAMILIES[found]


def _read_weights(folder: Path) -> Weights:
    """Read a component's weights from one file or from shards."""
    for stem in ("diffusion_pytorch_model", "model"):
        index = folder / f"{stem}.safetensors.index.json"
        files = set(_read_json(index)["weight_map"].values()) if index.is_file() else {f"{stem}.safetensors"}
        if all((folder / file).is_file() for file in files):
            try:
                return {name: tensor for file in sorted(files) for name, tensor in load_file(folder / file).items()}
            except (OSError, SafetensorError) as error:
                raise OptionError(f"the weights in {folder} are damaged or truncated: {error}") from error
    raise OptionError(f"{folder} has no safetensors weights (variants such as fp16 are not read). Save it with them.")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{file} cannot be read: {error}. Give a folder in diffusers' layout") from error


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of `python -m training.single_file`."""
    parser = argparse.ArgumentParser(
        prog=command_name("training.single_file"), description="Export a student as one file."
    )
    parser.add_argument("folder", type=Path, help="The --output_dir of a run, or any folder in diffusers' layout.")
    parser.add_argument("--output", type=Path, required=True, help="The .safetensors file to write.")
    parser.add_argument("--dtype", choices=DTYPES, default=None, help="Data type of all weights. By default, each "
                        "component keeps its own.")  # fmt: skip
    return parser


def run(args: argparse.Namespace) -> None:
    """Export the student, and print the size of the file."""
    file = export_single_file(args.folder, args.output, args.dtype)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process."""
    run_command(make_parser(), argv, run)

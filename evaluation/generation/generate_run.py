"""Generates the missing images of a run, and times one image."""

import resource
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm import tqdm

from evaluation.errors import EvaluationError
from evaluation.generation.sampling import one_or_list, seconds_per_image
from evaluation.runs.run import Run, Shot
from training.models.calling import call_pipeline


def reduce_image(image: Image.Image, resolution: int) -> Image.Image:
    """Resize an image (Lanczos) to a short side of `resolution` pixels; a smaller image is not changed."""
    short = min(image.size)
    if short <= resolution:
        return image
    width, height = (round(side * resolution / short) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def draw_images(pipeline: DiffusionPipeline, shots: list[Shot], call: dict[str, Any]) -> list[Image.Image]:
    """Generate a batch of images.

    Args:
        pipeline: any text-to-image pipeline.
        shots: prompt and seed of each image.
        call: arguments of the pipeline's call.

    Raises:
        EvaluationError: the pipeline refuses an argument of `call`, or an image has a single color, which is the result
            of NaN values or of a safety checker.
    """
    generators = [torch.Generator().manual_seed(shot.seed) for shot in shots]
    prompts = [shot.prompt for shot in shots]
    try:
        # "pil" instead of "pt", whose value range differs between pipelines (DeepFloyd IF returns [-1, 1]).
        output = call_pipeline(pipeline, prompts, generator=one_or_list(generators), output_type="pil", **call)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise EvaluationError(f"{type(pipeline).__name__} cannot be called with {call}: {reason}") from error
    for shot, image in zip(shots, output.images, strict=True):
        pixels = np.asarray(image)
        if pixels.min() == pixels.max():
            raise EvaluationError(
                f"{type(pipeline).__name__} generated a single color for {shot.prompt!r} (seed {shot.seed}). The cause "
                "is NaN, which another --torch_dtype fixes, or a safety checker, which --no_safety_checker removes."
            )
    return output.images


def split_batches(shots: list[Shot], size: int) -> Iterator[list[Shot]]:
    """Split a list into lists of at most `size` items."""
    rest = iter(shots)
    while batch := list(islice(rest, size)):
        yield batch


def draw_missing(pipeline: DiffusionPipeline, run: Run, batch_size: int, resolution: int, call: dict[str, Any]) -> None:
    """Generate the missing images of a run, and save them after each batch.

    The size that the pipeline generates is recorded in the run's manifest.

    Args:
        pipeline: any text-to-image pipeline.
        run: run to complete.
        batch_size: number of images per call.
        resolution: size in pixels; images with a longer short side are resized to it before they are saved.
        call: arguments of the pipeline's call.

    Raises:
        EvaluationError: see `draw_images`; or the size differs from that of earlier images.
    """
    missing = run.missing()
    with tqdm(total=len(run.shots), initial=len(run.shots) - len(missing), unit="image", desc=run.name) as progress:
        for batch in split_batches(missing, batch_size):
            for shot, image in zip(batch, draw_images(pipeline, batch, call)):
                run.record_drawn_size(image.size)
                run.save(shot, reduce_image(image, resolution))
            progress.update(len(batch))


def measure_speed(pipeline: DiffusionPipeline, prompt: str, repeats: int, device: str, call: dict[str, Any]) -> dict:
    """Measure seconds and peak memory in GiB for one image at batch size 1 (Fig. 7). Returns JSON with definitions."""
    peak, definition = _peak_memory(device)
    seconds = seconds_per_image(pipeline, prompt, repeats, **call)
    return {
        "seconds_per_image": {
            "value": seconds,
            "definition": f"prompt to pixels at batch 1, median of {repeats} after a warm-up",
        },
        "peak_memory_gib": {"value": peak() / 2**30, "definition": definition},
    }


def _peak_memory(device: str) -> tuple[Callable[[], int], str]:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device), "peak GPU tensor memory at batch 1, weights included"
    kib = 1024  # ru_maxrss is in KiB on Linux
    return (
        lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kib,
        "peak resident memory of the whole process up to the end of the timing, libraries and loading included",
    )

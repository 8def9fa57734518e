"""Draw the images of a run, continuing where an earlier attempt stopped, and time one image."""

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
    """Reduce an image (Lanczos) to a short side of `resolution` pixels; a smaller one stays as it is."""
    short = min(image.size)
    if short <= resolution:
        return image
    width, height = (round(side * resolution / short) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def draw_images(pipeline: DiffusionPipeline, shots: list[Shot], call: dict[str, Any]) -> list[Image.Image]:
    """Draw a batch.

    Args:
        pipeline: any text-to-image pipeline.
        shots: one image each, with its own seed.
        call: arguments of the pipeline's call.

    Raises:
        EvaluationError: the pipeline refuses an argument of `call`, or an image is one even colour, which is what NaN
            becomes, and a safety checker's verdict.
    """
    generators = [torch.Generator().manual_seed(shot.seed) for shot in shots]
    prompts = [shot.prompt for shot in shots]
    try:
        # "pil" and not "pt": what "pt" holds is not the same range in all pipelines (DeepFloyd IF keeps [-1, 1]).
        output = call_pipeline(pipeline, prompts, generator=one_or_list(generators), output_type="pil", **call)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise EvaluationError(f"{type(pipeline).__name__} cannot be called with {call}: {reason}") from error
    for shot, image in zip(shots, output.images, strict=True):
        pixels = np.asarray(image)
        if pixels.min() == pixels.max():
            raise EvaluationError(
                f"{type(pipeline).__name__} drew one even colour for {shot.prompt!r} (seed {shot.seed}). It is either "
                "NaN, which another --torch_dtype fixes, or a safety checker, which --no_safety_checker removes."
            )
    return output.images


def split_batches(shots: list[Shot], size: int) -> Iterator[list[Shot]]:
    """Cut a list into lists of at most `size`."""
    rest = iter(shots)
    while batch := list(islice(rest, size)):
        yield batch


def draw_missing(pipeline: DiffusionPipeline, run: Run, batch_size: int, resolution: int, call: dict[str, Any]) -> None:
    """Draw the images that the run still lacks. Every image is on the disk as soon as its batch is drawn.

    The size that the pipeline draws, its own unless `call` names one, is recorded in the run's manifest.

    Args:
        pipeline: any text-to-image pipeline.
        run: its folder is filled.
        batch_size: images in one call.
        resolution: pixels; images with a larger short side are reduced to it before they are saved.
        call: arguments of the pipeline's call.

    Raises:
        EvaluationError: see `draw_images`; or the size is not that of the images drawn earlier.
    """
    missing = run.missing()
    with tqdm(total=len(run.shots), initial=len(run.shots) - len(missing), unit="image", desc=run.name) as progress:
        for batch in split_batches(missing, batch_size):
            for shot, image in zip(batch, draw_images(pipeline, batch, call)):
                run.record_drawn_size(image.size)
                run.save(shot, reduce_image(image, resolution))
            progress.update(len(batch))


def measure_speed(pipeline: DiffusionPipeline, prompt: str, repeats: int, device: str, call: dict[str, Any]) -> dict:
    """Seconds and peak memory in GiB of one image at batch 1 (Fig. 7), as JSON values with their definitions."""
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
    kib = 1024  # Linux counts in KiB
    return (
        lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kib,
        "peak resident memory of the whole process up to the end of the timing, libraries and loading included",
    )

"""Draw the images of a run, going on where an earlier attempt stopped, and time one image."""

import logging
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
from evaluation.runs.run import Run, Shot
from evaluation.generation.sampling import one_or_list, seconds_per_image

logger = logging.getLogger(__name__)


def downsample(image: Image.Image, resolution: int) -> Image.Image:
    """Reduce (Lanczos) to a short side of `resolution` pixels; smaller images stay as they are."""
    short = min(image.size)
    if short <= resolution:
        return image
    return image.resize(tuple(round(side * resolution / short) for side in image.size), Image.Resampling.LANCZOS)


def draw(pipeline: DiffusionPipeline, shots: list[Shot], call: dict[str, Any]) -> list[Image.Image]:
    """Draw a batch. `call` goes to the pipeline.

    Raises:
        EvaluationError: an image is one even colour, which is what NaN becomes, and a safety checker's verdict.
    """
    generators = [torch.Generator().manual_seed(shot.seed) for shot in shots]
    prompts = [shot.prompt for shot in shots]
    # "pil" and not "pt": what "pt" holds is not the same range in all pipelines (DeepFloyd IF keeps [-1, 1]).
    output = pipeline(prompts, generator=one_or_list(generators), output_type="pil", **call)
    for shot, image in zip(shots, output.images, strict=True):
        pixels = np.asarray(image)
        if pixels.min() == pixels.max():
            raise EvaluationError(
                f"{type(pipeline).__name__} drew one even colour for {shot.prompt!r} (seed {shot.seed}): NaN, mended "
                "by another --torch_dtype, or a safety checker, taken out by --no_safety_checker."
            )
    return output.images


def batches(shots: list[Shot], size: int) -> Iterator[list[Shot]]:
    """Cut a list into lists of at most `size`."""
    rest = iter(shots)
    while batch := list(islice(rest, size)):
        yield batch


def generate(pipeline: DiffusionPipeline, run: Run, batch_size: int, resolution: int, call: dict[str, Any]) -> None:
    """Draw whatever the run still lacks. Every image is on the disk as soon as its batch is drawn."""
    missing = run.missing()
    with tqdm(total=len(run.shots), initial=len(run.shots) - len(missing), unit="image", desc=run.name) as progress:
        for batch in batches(missing, batch_size):
            for shot, image in zip(batch, draw(pipeline, batch, call)):
                run.save(shot, downsample(image, resolution))
            progress.update(len(batch))


def measure_speed(pipeline: DiffusionPipeline, prompt: str, repeats: int, device: str, call: dict[str, Any]) -> dict:
    """Seconds and peak memory of one image at batch 1 (Fig. 7), as JSON values with their definitions."""
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
        return lambda: torch.cuda.max_memory_allocated(
            device
        ), "most GPU memory in tensors at batch 1, weights included"
    kib = 1024  # Linux counts in KiB
    return (
        lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kib,
        "most resident memory of the whole process up to the end of the timing, libraries and loading included",
    )

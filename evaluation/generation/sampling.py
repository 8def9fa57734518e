"""Reproducible sampling from any diffusers text-to-image pipeline, and timing."""

import time
from collections.abc import Iterator
from statistics import median

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from training.models.calling import call_pipeline


def one_or_list(generators: list[torch.Generator]) -> torch.Generator | list[torch.Generator]:
    """A single generator for a batch of one, because some pipelines (aMUSEd) do not accept a list; else the list."""
    return generators[0] if len(generators) == 1 else generators


def sample(
    pipeline: DiffusionPipeline, prompts: list[str], seeds: list[int], batch_size: int = 128, **kwargs
) -> Iterator[Tensor]:
    """Generate one image per prompt, in batches.

    Each image has its own seed, so it does not depend on the batch size or on other images.

    Args:
        pipeline: any text-to-image pipeline.
        prompts: N captions.
        seeds: N seeds, one per prompt.
        batch_size: number of images per call.
        kwargs: arguments of the pipeline's call, such as `num_inference_steps`.

    Yields:
        Images `(B, 3, H, W)` in [0, 1] on the CPU, rounded to 8 bits like the saved real images that they are compared
        with.

    Raises:
        ValueError: the images contain NaN or infinity.
    """
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[batch]]
        output = call_pipeline(pipeline, prompts[batch], generator=one_or_list(generators), output_type="pt", **kwargs)
        images = output.images.float().cpu()
        if not images.isfinite().all():
            raise ValueError(f"{type(pipeline).__name__} generated NaN or infinity (prompts from {start}, {kwargs}).")
        yield images.mul(255).round().div(255)


def seconds_per_image(pipeline: DiffusionPipeline, prompt: str, repeats: int = 5, **kwargs) -> float:
    """Median latency in seconds of one image at batch size 1, from prompt to pixels, of `repeats` after a warm-up."""
    seconds = []
    for seed in range(repeats + 1):
        start = time.perf_counter()
        list(sample(pipeline, [prompt], [seed], **kwargs))
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])

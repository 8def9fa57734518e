"""Draws images from any diffusers text-to-image pipeline, reproducibly, and times it."""

import time
from collections.abc import Iterator
from statistics import median

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from training.models.calling import call_pipeline


def one_or_list(generators: list[torch.Generator]) -> torch.Generator | list[torch.Generator]:
    """A batch of one gets a bare generator: some pipelines (aMUSEd) take no list, and so work at batch size 1."""
    return generators[0] if len(generators) == 1 else generators


def sample(
    pipeline: DiffusionPipeline, prompts: list[str], seeds: list[int], batch_size: int = 128, **kwargs
) -> Iterator[Tensor]:
    """Draw one image for each prompt, batch by batch.

    Every image has its own seed, so it depends neither on the batch size nor on its neighbours.

    Args:
        pipeline: any text-to-image pipeline.
        prompts: N captions.
        seeds: N seeds, one for each prompt.
        batch_size: images in one call.
        kwargs: arguments of the pipeline's call, such as `num_inference_steps`.

    Yields:
        Images `(B, 3, H, W)` in [0, 1] on the CPU, rounded to the 8 bits that a saved image has: the real ones they are
        compared with went through the same.

    Raises:
        ValueError: the pipeline drew NaN or infinity.
    """
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[batch]]
        output = call_pipeline(pipeline, prompts[batch], generator=one_or_list(generators), output_type="pt", **kwargs)
        images = output.images.float().cpu()
        if not images.isfinite().all():
            raise ValueError(f"{type(pipeline).__name__} drew NaN or infinity (prompts {start} ff., {kwargs}).")
        yield images.mul(255).round().div(255)


def seconds_per_image(pipeline: DiffusionPipeline, prompt: str, repeats: int = 5, **kwargs) -> float:
    """Latency of one image at batch size 1, prompt to pixels in seconds: the median of `repeats` after a warm-up."""
    seconds = []
    for seed in range(repeats + 1):
        start = time.perf_counter()
        list(sample(pipeline, [prompt], [seed], **kwargs))
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])

"""Speed of a pipeline after `pipe.optimize()` compared to the stock pipeline, measured alternately in one run.

    python -m benchmarks.pipeline --model build/demo/student

In each pair, both pipelines are called one after the other, so that other load on the machine slows both; the result is
the median of the ratios. Both use the same prompts and seeds, and the difference of their images is printed as well.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from diffusers import DiffusionPipeline

from benchmarks.measure import machine
from pipelines import ADDPipeline
from training.command import command_name, first_line
from training.models.calling import call_pipeline

PROMPT = "a handwritten seven"


@dataclass(frozen=True)
class Comparison:
    """Result of the comparison, for one call.

    Attributes:
        stock_ms: median time of the stock pipeline's calls.
        optimized_ms: median time of the optimized pipeline's calls.
        ratio: median of stock / optimized over the pairs; above 1, the optimized pipeline is faster.
        first_call_s: seconds of the first call of the optimized pipeline, which compiles.
        difference: maximum difference of corresponding pixels in [0, 1].
    """

    stock_ms: float
    optimized_ms: float
    ratio: float
    first_call_s: float
    difference: float


def compare(stock: DiffusionPipeline, ours: DiffusionPipeline, pairs: int, warmup: int = 3, **call) -> Comparison:
    """Time `pairs` calls of each pipeline alternately, after `warmup` calls of each.

    Args:
        stock: the stock pipeline.
        ours: optimized pipeline with a copy of the same weights.
        pairs: number of timed calls of each; the order alternates from pair to pair.
        warmup: number of pairs that are not timed, at least one.
        call: arguments of both calls.
    """
    first = _call(ours, 0, call)[0]
    difference = 0.0
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    for i in range(warmup + pairs):
        images = {}
        for name in ("stock", "ours")[:: 1 if i % 2 else -1]:
            taken, images[name] = _call({"stock": stock, "ours": ours}[name], i, call)
            if i >= warmup:
                seconds[name].append(taken)
        difference = max(difference, (images["stock"] - images["ours"]).abs().max().item())
    ratios = [a / b for a, b in zip(seconds["stock"], seconds["ours"])]
    medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    return Comparison(medians["stock"], medians["ours"], statistics.median(ratios), first, difference)


def _call(pipe: DiffusionPipeline, seed: int, call: dict) -> tuple[float, torch.Tensor]:
    """Call a pipeline. Returns the seconds, and the images on the CPU."""
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    images = call_pipeline(pipe, generator=generator, guidance_scale=0.0, output_type="pt", **call).images
    return time.perf_counter() - start, images.float().cpu()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process. The last line of the output is JSON."""
    parser = argparse.ArgumentParser(prog=command_name("benchmarks.pipeline"), description=first_line(__doc__))
    add = parser.add_argument
    add("--model", required=True, help="Hub id or folder of a student.")
    add("--prompt", default=PROMPT, help="Prompt for the images.")
    add("--num_inference_steps", type=int, default=1, help="Number of sampling steps.")
    add("--batch_size", type=int, default=1, help="Number of images per call.")
    add("--pairs", type=int, default=30, help="Number of timed calls of each pipeline.")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="Data type of the weights.")
    add("--tiny_vae", default=None, help="Hub id or folder of an AutoencoderTiny, which is only used by the optimized "
        "pipeline, so the images differ.")  # fmt: skip
    add("--no_compile", action="store_true", help="Do not use torch.compile.")
    args = parser.parse_args(argv)
    if args.pairs < 1 or args.batch_size < 1:
        parser.error(f"--pairs={args.pairs} and --batch_size={args.batch_size} must be at least 1.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, args.dtype)
    ours = ADDPipeline.from_pretrained(args.model, dtype=dtype).to(device)
    steps = ours.sampling_timesteps(args.num_inference_steps)
    stock = DiffusionPipeline.from_pretrained(args.model, dtype=dtype).to(device)
    for pipe in (stock, ours):
        pipe.set_progress_bar_config(disable=True)
    ours.optimize(compile=not args.no_compile, tiny_vae=args.tiny_vae)
    call = {"prompt": [args.prompt] * args.batch_size, "timesteps": steps}
    result = compare(stock, ours, args.pairs, **call)
    where = machine(device)
    print(
        f"{args.num_inference_steps} step(s), {args.batch_size} image(s) on {where['device']}: stock "
        f"{result.stock_ms:.1f} ms, optimized {result.optimized_ms:.1f} ms, {result.ratio:.2f} times as fast; the "
        f"first call took {result.first_call_s:.1f} s; pixels differ by at most {result.difference:.1e}"
    )
    print(json.dumps({**vars(args), **asdict(result), **where}))


if __name__ == "__main__":
    main()

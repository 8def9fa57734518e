"""How much sooner `pipe.optimize()` draws than the stock pipeline: both in one run, turn by turn.

    python -m benchmarks.pipeline --model build/demo/student

A pair is one call of each right after the other, so that a busy machine slows both; the figure is the median of the
pairs' ratios. Both draw the same prompts and seeds, and how far their images lie apart is printed beside it.
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
    """Of one call.

    Attributes:
        stock_ms: median of the stock pipeline's calls.
        optimized_ms: the same of ours, after `optimize`.
        ratio: median of stock / optimized over the pairs: above 1, ours is faster.
        first_call_s: of our first call, which compiles.
        difference: the largest distance of two pixels in [0, 1] that should be the same.
    """

    stock_ms: float
    optimized_ms: float
    ratio: float
    first_call_s: float
    difference: float


def compare(stock: DiffusionPipeline, ours: DiffusionPipeline, pairs: int, warmup: int = 3, **call) -> Comparison:
    """Time `pairs` calls of each, turn by turn, after `warmup` of each.

    Args:
        stock: the stock pipeline.
        ours: one on other copies of the same weights, optimized.
        pairs: measured; which of the two goes first changes from pair to pair.
        warmup: not measured, at least one, for the first compiles.
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
    """Seconds, and the images on the CPU, whose copy waits for the device."""
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    images = call_pipeline(pipe, generator=generator, guidance_scale=0.0, output_type="pt", **call).images
    return time.perf_counter() - start, images.float().cpu()


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Its last line is JSON."""
    parser = argparse.ArgumentParser(prog=command_name("benchmarks.pipeline"), description=first_line(__doc__))
    add = parser.add_argument
    add("--model", required=True, help="A student's folder or repo.")
    add("--prompt", default=PROMPT, help="What to draw.")
    add("--num_inference_steps", type=int, default=1, help="Of each image.")
    add("--batch_size", type=int, default=1, help="Images a call.")
    add("--pairs", type=int, default=30, help="Calls of each pipeline that are timed.")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="Of the weights.")
    add("--tiny_vae", default=None, help="An AutoencoderTiny for ours alone; the images then differ.")
    add("--no_compile", action="store_true", help="All but torch.compile.")
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

"""Cost of ADD with Stable Diffusion 1.5, 2.1 and SDXL at full size, built from their configs with random weights.

    python -m benchmarks.full_size count                      count FLOPs, peak memory and parameters, without weights
    python -m benchmarks.full_size options --model sdxl       count the saving and cost of each memory option
    python -m benchmarks.full_size run --model sdxl --recipe C    measure iterations on the present device
    python -m benchmarks.full_size compare --model sdxl --recipes A C    measure two recipes alternately
    python -m benchmarks.full_size all                        measure all runs and write benchmarks/results/

Recipes are flags of the training scripts; `count`, `run` and `compare` accept additional flags at the end.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import runs
from benchmarks.architectures import ARCHITECTURES, MEMORY, RECIPES
from benchmarks.runs import AIMS, RESULTS, Run, compare, measure_all
from training.command import command_name, first_line
from training.models.families import StableDiffusion, StableDiffusionXL
from training.options import Options
from training.options import make_parser as make_training_parser

FAMILY_OF_LAYOUT = {"sd": StableDiffusion, "sdxl": StableDiffusionXL}
BATCHES = (1, 4)  # batch sizes in the table of options


@dataclasses.dataclass(frozen=True)
class Option:
    """A row of the table of options."""

    title: str
    recipe: str
    flags: tuple[str, ...] = ()
    is_cached: bool = True


CHECKPOINTED, EIGHT_BIT = (MEMORY[0],), (MEMORY[1],)
FOUR_BIT = ("--teacher_precision", "4bit")
OPTIONS = (
    Option("pixel distillation, F at 518 px (recipe A)", "A"),
    Option("latent distillation, F at 224 px (recipe B)", "B"),
    Option("B without `--cache_dir_latents`", "B", is_cached=False),
    Option("B, decoded crop of 224 px and its halo (recipe C)", "C"),
    Option("B, tiny decoder (recipe D)", "D"),
    Option("B, `--reconstruct_real`", "B", ("--reconstruct_real",)),
    Option("B, `--gradient_checkpointing`", "B", CHECKPOINTED),
    Option("B, `--use_8bit_adam`", "B", EIGHT_BIT),
    Option("B, `--use_ema`", "B", ("--use_ema",)),
    Option("B, `--teacher_precision 8bit`", "B", ("--teacher_precision", "8bit")),
    Option("B, `--teacher_precision 4bit`", "B", FOUR_BIT),
    Option("B, `--use_lora`", "B", ("--use_lora",)),
    Option("C, LoRA", "C+LoRA"),
    Option("C, checkpointed, 8-bit Adam", "C", MEMORY),
    Option("C, LoRA, checkpointed, 8-bit Adam", "C+LoRA", MEMORY),
    Option("C, LoRA, checkpointed, 8-bit Adam, 4-bit base", "C+LoRA", (*MEMORY, *FOUR_BIT)),
)


def training_flags(
    model: str, recipe: str, resolution: int, batch: int, world: str | Path, more: Sequence[str]
) -> list[str]:
    """Flags of the training script for a recipe and the models of `benchmarks.world`."""
    flags = RECIPES[recipe].flags
    of_pixels = (
        "--discriminator_feature_model", f"{world}/feature_network",
        "--discriminator_text_model", f"{world}/text_condition",
        "--discriminator_image_model", f"{world}/image_condition",
    )  # fmt: skip
    return [
        "--pretrained_teacher_model", f"{world}/teacher", "--train_data_dir", f"{world}/data",
        *(() if "--discriminator" in (*flags, *more) else of_pixels),
        "--cache_dir_latents", f"{world}/cache-{resolution}", "--center_crop",
        "--resolution", str(resolution), "--train_batch_size", str(batch), "--mixed_precision", "bf16",
        "--output_dir", f"{world}/out", "--report_to", "none", "--seed", "0", "--max_train_steps", "1000",
        *(flag.format(tiny_vae=f"{world}/tiny_vae") for flag in flags), *more,
    ]  # fmt: skip


def training_options(*args) -> Options:
    """Parsed options of `training_flags`."""
    return Options.of(make_training_parser("benchmark").parse_args(training_flags(*args)))


def without_cache(options: Options) -> Options:
    """The same options without the cache, so that the encoders run."""
    return dataclasses.replace(options, hardware=dataclasses.replace(options.hardware, cache_dir_latents=None))


def count(
    models: Sequence[str], resolution: int, recipes: Sequence[str], batch: int, more: Sequence[str]
) -> list[dict]:
    """Count and print the cost of each model and recipe. Returns one row for each."""
    from benchmarks.count import count_iteration

    rows = []
    for model in models:
        for recipe in recipes:
            [cost] = count_iteration(model, training_options(model, recipe, resolution, batch, "world", more))
            rows.append({"model": model, "resolution": resolution, "recipe": recipe, **dataclasses.asdict(cost)})
            print(
                f"{model:<5} @{resolution} {recipe:<7} {cost.tflop:6.2f} TFLOP per image, {cost.batch} per iteration: "
                f"{cost.peak_gib:5.2f} GiB peak, {cost.resting_gib:5.2f} at rest; {cost.trainable / 1e6:7.1f}M "
                f"trainable and {cost.frozen / 1e6:7.1f}M frozen UNet parameters",
                flush=True,
            )
    return rows


def compare_options(model: str, resolution: int) -> list[dict]:
    """Count the cost of each option that saves memory or time, and print a Markdown table."""
    from benchmarks.count import count_iteration

    print("| | TFLOP per image | " + " | ".join(f"GiB at batch {b}" for b in BATCHES) + " | GiB at rest |")
    print("|---|" + "--:|" * (2 + len(BATCHES)))
    rows = []
    for option in OPTIONS:
        asked = training_options(model, option.recipe, resolution, 1, "world", option.flags)
        if not option.is_cached:
            asked = without_cache(asked)
        costs = count_iteration(model, asked, BATCHES)
        peaks = " | ".join(f"{cost.peak_gib:.1f}" for cost in costs)
        print(f"| {option.title} | {costs[0].tflop:.1f} | {peaks} | {costs[0].resting_gib:.1f} |", flush=True)
        rows += [{"option": option.title, **dataclasses.asdict(cost)} for cost in costs]
    return rows


def run(args: argparse.Namespace) -> dict:
    """Measure one recipe on the present device."""
    from benchmarks.count import count_iteration
    from benchmarks.measure import machine, matrix_rate, time_iterations
    from benchmarks.world import build_world

    device = _device()
    world = build_world(args.model, args.world / args.model / str(args.resolution), args.resolution, device)
    flags = (args.model, args.recipe, args.resolution, args.batch, world, args.more)
    [cost] = count_iteration(args.model, training_options(*flags))
    family = FAMILY_OF_LAYOUT[ARCHITECTURES[args.model].layout]
    speed = time_iterations(training_options(*flags), family, args.iterations, args.warmup)
    rate = matrix_rate(device, torch.bfloat16, 8192 if device.type == "cuda" else 1024)
    achieved = cost.tflop * speed.images_per_second
    return {
        "model": args.model, "resolution": args.resolution, "recipe": args.recipe, "batch": args.batch,
        "flags": " ".join(args.more), **dataclasses.asdict(speed), "peak_counted_gib": cost.peak_gib,
        "tflop_per_image": cost.tflop, "tflop_per_second": achieved, "matrix_rate": rate,
        "share_of_matrix_rate": achieved / rate, **machine(device),
        "command": _command(),
    }  # fmt: skip


def _command() -> str:
    return "python -m benchmarks.full_size " + " ".join(sys.argv[1:])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. Unknown arguments are passed to the parser of the training script."""
    parser = argparse.ArgumentParser(prog=command_name("benchmarks.full_size"), description=first_line(__doc__))
    commands = parser.add_subparsers(dest="command", required=True)
    counting = commands.add_parser("count", help="Count FLOPs, memory and parameters.")
    counting.add_argument("--models", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    counting.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    counting.add_argument("--json", type=Path, default=None, help="JSON file to write the rows to.")
    table = commands.add_parser("options", help="Print a table of the counted saving and cost of each memory option.")
    table.add_argument("--model", choices=ARCHITECTURES, default="sdxl")
    running = commands.add_parser("run", help="Measure one recipe. The last line of the output is JSON.")
    running.add_argument("--recipe", choices=RECIPES, required=True)
    comparing = commands.add_parser("compare", help="Measure two recipes alternately, and compare their speed.")
    comparing.add_argument("--recipes", nargs=2, choices=RECIPES, default=["A", "C"])
    comparing.add_argument("--rounds", type=int, default=2, help="Number of runs of each recipe, in alternating order.")
    for command in (running, comparing):
        command.add_argument("--model", choices=ARCHITECTURES, required=True)
    everything = commands.add_parser("all", help="Measure all runs of the table that have no results yet.")
    for command in (comparing, everything):
        command.add_argument("--results", type=Path, default=RESULTS, help="Folder for the results.")
    for command in (counting, running, comparing):
        command.add_argument("--batch", type=int, default=1, help="Number of images per iteration.")
    for command in (running, comparing, everything):
        command.add_argument("--iterations", type=int, default=10, help="Number of timed iterations.")
        command.add_argument("--warmup", type=int, default=3, help="Number of warmup iterations before timing.")
        command.add_argument("--world", type=Path, default=Path("build/full-size"), help="Folder for random weights.")
    for command in (counting, running, comparing, table):
        command.add_argument("--resolution", type=int, default=512, help="Height and width of the images in pixels.")
    args, args.more = parser.parse_known_args(argv)
    if args.command in ("all", "options") and args.more:
        parser.error(f"unrecognized arguments: {' '.join(args.more)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process."""
    args = parse(argv)
    if args.command == "count":
        rows = count(args.models, args.resolution, args.recipes, args.batch, args.more)
        if args.json is not None:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")
    elif args.command == "options":
        compare_options(args.model, args.resolution)
    elif args.command == "run":
        print(json.dumps(run(args)))
    elif args.command == "compare":
        first, second = (
            Run(args.model, args.resolution, recipe, args.batch, tuple(args.more)) for recipe in args.recipes
        )
        found = compare(first, second, args.rounds, args.iterations, args.warmup, args.world)
        path = args.results / f"{runs.file_name(found['rows'][0]['device'])}-comparisons.json"
        runs.save(path, [*runs.load(path), {"command": _command(), **found}])
        print(f"{args.recipes[1]} is {found['speed']:.2f} times as fast as {args.recipes[0]}")
    else:
        from benchmarks.measure import machine

        rows = measure_all(machine(_device())["device"], args.iterations, args.warmup, args.world, args.results)
        print("\n".join(aim.verdict(rows) for aim in AIMS))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()

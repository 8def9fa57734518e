"""What ADD costs on Stable Diffusion 1.5, 2.1 and SDXL at full size, from their configs with random weights.

    python -m benchmarks.full_size count                      FLOPs, activations, parameters: on any machine, no weights
    python -m benchmarks.full_size options --model sdxl       what each way to save memory saves and costs, counted
    python -m benchmarks.full_size run --model sdxl --recipe C    real iterations on the device at hand
    python -m benchmarks.full_size all                        every run of the table, into benchmarks/results/

Recipes are flags of the training scripts; `run` takes more of them at its end.
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.architectures import ARCHITECTURES, MEMORY, RECIPES
from training.arguments import make_parser as make_training_parser
from training.families import StableDiffusion, StableDiffusionXL

FAMILIES = {"sd": StableDiffusion, "sdxl": StableDiffusionXL}
RESULTS = Path(__file__).parent / "results"
# (model, resolution, recipe, batch, more flags): the aims of the cost table first.
RUNS = [
    ("sdxl", 512, "C+LoRA", 1, MEMORY),
    ("sdxl", 512, "C", 1, MEMORY),
    *(("sdxl", 512, recipe, 4, ()) for recipe in RECIPES),
    *(("sd15", 512, recipe, 8, ()) for recipe in RECIPES),
    ("sd21", 512, "C", 8, ()),
    ("sdxl", 1024, "C", 1, MEMORY),
    ("sdxl", 1024, "C+LoRA", 1, MEMORY),
    ("sdxl", 512, "C+LoRA", 1, (*MEMORY, "--teacher_precision", "4bit")),
    ("sdxl", 512, "C+LoRA", 1, (*MEMORY, "--teacher_precision", "8bit")),
]


CHECKPOINTED, EIGHT_BIT = MEMORY
OPTIONS = [
    ("pixel distillation, F at 518 px (recipe A)", "A", ()),
    ("latent distillation, F at 224 px (recipe B)", "B", ()),
    ("B, decoded crop of 224 px and its halo (recipe C)", "C", ()),
    ("B, tiny decoder (recipe D)", "D", ()),
    ("B, `--gradient_checkpointing`", "B", (CHECKPOINTED,)),
    ("B, `--use_8bit_adam`", "B", (EIGHT_BIT,)),
    ("B, `--teacher_precision 8bit`", "B", ("--teacher_precision", "8bit")),
    ("B, `--teacher_precision 4bit`", "B", ("--teacher_precision", "4bit")),
    ("B, `--use_lora`", "B", ("--use_lora",)),
    ("C, LoRA", "C+LoRA", ()),
    ("C, checkpointed, 8-bit Adam", "C", MEMORY),
    ("C, LoRA, checkpointed, 8-bit Adam", "C+LoRA", MEMORY),
    ("C, LoRA, checkpointed, 8-bit Adam, 4-bit base", "C+LoRA", (*MEMORY, "--teacher_precision", "4bit")),
]


def training_flags(
    model: str, recipe: str, resolution: int, batch: int, world: str | Path, more: Sequence[str]
) -> list[str]:
    """The training script's flags for a recipe on the world of `benchmarks.world`."""
    flags = RECIPES[recipe].flags
    return [
        "--pretrained_teacher_model", f"{world}/teacher", "--train_data_dir", f"{world}/data",
        "--discriminator_feature_model", f"{world}/feature_network",
        "--discriminator_text_model", f"{world}/text_condition",
        "--discriminator_image_model", f"{world}/image_condition",
        "--cache_dir_latents", f"{world}/cache-{resolution}", "--center_crop",
        "--resolution", str(resolution), "--train_batch_size", str(batch), "--mixed_precision", "bf16",
        "--output_dir", f"{world}/out", "--report_to", "none", "--seed", "0", "--max_train_steps", "1000",
        *(flag.format(tiny_vae=f"{world}/tiny_vae") for flag in flags), *more,
    ]  # fmt: skip


def training_args(*args) -> argparse.Namespace:
    """The same, parsed."""
    return make_training_parser("benchmark").parse_args(training_flags(*args))


def count(models: Sequence[str], resolution: int, recipes: Sequence[str], more: Sequence[str]) -> list[dict]:
    """One row a model and recipe; an image an iteration."""
    from benchmarks.count import count_iteration

    rows = []
    for model in models:
        for recipe in recipes:
            cost = count_iteration(model, training_args(model, recipe, resolution, 1, "world", more))
            rows.append({"model": model, "resolution": resolution, "recipe": recipe, **dataclasses.asdict(cost)})
            print(
                f"{model:<5} @{resolution} {recipe:<7} {cost.tflop:6.2f} TFLOP, activations "
                f"{cost.activations_gib:5.2f} GiB, {cost.trainable / 1e6:7.1f}M trainable and "
                f"{cost.frozen / 1e6:7.1f}M frozen parameters of UNets",
                flush=True,
            )
    return rows


def options(model: str, resolution: int) -> list[dict]:
    """What each way to save memory or time saves and costs, alone on recipe A, and all together. A Markdown table."""
    from benchmarks.count import count_iteration, state_gib

    print("| | TFLOP an image | activations, GiB an image | weights and optimizer, GiB |\n|---|--:|--:|--:|")
    rows = []
    for title, recipe, more in OPTIONS:
        args = training_args(model, recipe, resolution, 1, "world", more)
        cost = count_iteration(model, args)
        row = {"option": title, "tflop": cost.tflop, "activations_gib": cost.activations_gib}
        rows.append(row | {"state_gib": state_gib(model, args, cost)})
        print(f"| {title} | {cost.tflop:.1f} | {cost.activations_gib:.2f} | {rows[-1]['state_gib']:.1f} |", flush=True)
    return rows


def run(args: argparse.Namespace) -> dict:
    """Measure one recipe on the device at hand."""
    from benchmarks.count import count_iteration
    from benchmarks.measure import machine, matrix_rate, time_iterations
    from benchmarks.world import build_world

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = build_world(args.model, args.world / args.model / str(args.resolution), args.resolution, device)
    flags = (args.model, args.recipe, args.resolution, args.batch, world, args.more)
    one = count_iteration(args.model, training_args(*flags[:3], 1, "world", args.more))
    family = FAMILIES[ARCHITECTURES[args.model].layout]
    speed = time_iterations(training_args(*flags), family, args.iterations)
    rate = matrix_rate(device, torch.bfloat16, 8192 if device.type == "cuda" else 1024)
    achieved = one.tflop * speed.images_per_second
    return {
        "model": args.model, "resolution": args.resolution, "recipe": args.recipe, "batch": args.batch,
        "flags": " ".join(args.more), **dataclasses.asdict(speed), "tflop_per_image": one.tflop,
        "tflop_per_second": achieved, "matrix_rate": rate, "share_of_matrix_rate": achieved / rate, **machine(device),
        "command": "python -m benchmarks.full_size " + " ".join(sys.argv[1:]),
    }  # fmt: skip


def run_all(world: Path, iterations: int, results: Path) -> None:
    """Every row of `RUNS`, each in a process of its own, whose memory is then its own too."""
    rows: list[dict] = []
    for model, resolution, recipe, batch, more in RUNS:
        command = [
            sys.executable, "-m", "benchmarks.full_size", "run", "--model", model, "--resolution", str(resolution),
            "--recipe", recipe, "--batch", str(batch), "--iterations", str(iterations), "--world", str(world), *more,
        ]  # fmt: skip
        print(" ".join(command[1:]), flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            rows.append({"model": model, "resolution": resolution, "recipe": recipe, "failed": done.returncode})
            continue
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(f"  {rows[-1]['milliseconds']:.0f} ms, {rows[-1]['peak_gib']:.1f} GiB", flush=True)
        save(results, rows)
    save(results, rows)


def save(folder: Path, rows: list[dict]) -> None:
    """`rows` as JSON, in a file named after the device."""
    folder.mkdir(parents=True, exist_ok=True)
    device = next((row["device"] for row in rows if "device" in row), "unknown")
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    (folder / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what it doesn't know goes to the training script's parser."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    counting = commands.add_parser("count", help="Count on the meta device.")
    counting.add_argument("--models", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    counting.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    counting.add_argument("--json", type=Path, default=None, help="File to write the rows to.")
    table = commands.add_parser("options", help="What each way to save memory saves and costs, counted: a table.")
    table.add_argument("--model", choices=ARCHITECTURES, default="sdxl")
    running = commands.add_parser("run", help="Measure one recipe. The last line printed is JSON.")
    running.add_argument("--model", choices=ARCHITECTURES, required=True)
    running.add_argument("--recipe", choices=RECIPES, required=True)
    running.add_argument("--batch", type=int, default=1, help="Images an iteration.")
    everything = commands.add_parser("all", help="Measure every run of the table.")
    for command in (running, everything):
        command.add_argument("--iterations", type=int, default=10, help="Timed, after 3 of warm-up.")
        command.add_argument("--world", type=Path, default=Path("build/full-size"), help="Folder for random weights.")
    for command in (counting, running, table):
        command.add_argument("--resolution", type=int, default=512, help="Side of the images, pixels.")
    everything.add_argument("--results", type=Path, default=RESULTS, help="Folder for the figures.")
    args, args.more = parser.parse_known_args(argv)
    if args.command in ("all", "options") and args.more:
        parser.error(f"unrecognized arguments: {' '.join(args.more)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    args = parse(argv)
    if args.command == "count":
        rows = count(args.models, args.resolution, args.recipes, args.more)
        if args.json is not None:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")
    elif args.command == "options":
        options(args.model, args.resolution)
    elif args.command == "run":
        print(json.dumps(run(args)))
    else:
        run_all(args.world, args.iterations, args.results)


if __name__ == "__main__":
    main()

"""Measure and compare text-to-image pipelines.

    python -m evaluation generate --model REPO --prompts captions_val2017.json --num_prompts 5000 --output_dir RUN
    python -m evaluation measure RUN [RUN ...] --reference val2017
    python -m evaluation compare RUN RUN [RUN ...] --output_dir COMPARISON

`generate` can be killed and started again. A preference study over the same runs: `python -m evaluation.preference`.
"""

import argparse
import json
import logging
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation import environment
from evaluation.reports.compare_runs import write_comparison
from evaluation.metrics.encoders import CLIP, DINOV2
from evaluation.errors import EvaluationError, exit_status
from evaluation.generation.generate_run import generate, measure_speed
from evaluation.generation.loading import DTYPES, PipelineSpec, load_pipeline
from evaluation.metrics.measure_run import METRICS, References, check_metrics, load_observers, measure_run
from evaluation.generation.prompts import choose_prompts, load_dataset_prompts, read_prompts
from evaluation.metrics.references import export_dataset, find_images
from evaluation.runs.run import Run, open_comparable, write_json


def json_object(text: str) -> dict[str, Any]:
    """Parse a flag's JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object, such as '{{\"eta\": 1.0}}'")
    return value


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


# One flag a line where it fits: this is a table, and the formatter would make it three screens longer.
# fmt: off
def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    options = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    _generate(commands.add_parser("generate", help="draw the images of a run, and time the pipeline", **options))
    _measure(commands.add_parser("measure", help="compute the figures of runs", **options))
    _compare(commands.add_parser("compare", help="put runs beside one another", **options))
    return parser


def _dataset(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset_name", default=None, help="Hub id or folder of a data set, e.g. of COCO 2017 or PartiPrompts.")
    add("--dataset_config_name", default=None, help="Configuration of the data set, where it has several.")
    add("--dataset_split", default="validation", help="Split of the data set.")


def _generate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="The run's folder; one that was begun is finished.")
    add("--name", default=None, help="What tables call the run; by default the folder's name.")
    add("--model", required=True, help="Hub id or folder of a diffusers text-to-image pipeline.")
    add("--revision", default=None, help="Branch, tag or commit of the model's Hub repo.")
    add("--variant", default=None, help="Variant of the weight files, such as fp16.")
    add("--torch_dtype", choices=DTYPES, default="float32", help="Precision of the weights.")
    add("--unet", default=None, help="Id of a UNet that replaces the pipeline's, e.g. latent-consistency/lcm-sdxl.")
    add("--lora_weights", default=None, help="Id of LoRA weights to load, e.g. latent-consistency/lcm-lora-sdv1-5.")
    add("--scheduler", default=None, help="Class of diffusers, e.g. DPMSolverMultistepScheduler; default: as saved.")
    add("--scheduler_args", type=json_object, default={}, help="JSON that replaces entries of its configuration.")
    add("--no_safety_checker", action="store_true", help="Take the safety checker out: it blackens images.")
    add("--num_inference_steps", type=positive, default=None, help="Sampling steps; default: the pipeline's own.")
    add("--guidance_scale", type=float, default=None, help="Guidance; a student of ADD wants 0.")
    add("--negative_prompt", default=None, help="Negative prompt of every image.")
    add("--height", type=positive, default=None, help="Pixels; default: the pipeline's own.")
    add("--width", type=positive, default=None, help="Pixels; default: the pipeline's own.")
    add("--call_args", type=json_object, default={}, help="JSON of further arguments of the pipeline's call.")
    add("--resolution", type=positive, default=512, help="Larger images are reduced to this side, as in the paper.")
    add("--prompts", type=Path, default=None, help="File: .txt (one a line), .tsv (PartiPrompts), .json (COCO's "
        "captions), .jsonl (an image folder's metadata).")
    _dataset(parser)
    add("--caption_column", default="text", help="Column of the prompts, of a data set or a .jsonl.")
    add("--num_prompts", type=positive, default=None, help="Draw so many prompts by --prompt_seed; default: all.")
    add("--prompt_seed", type=int, default=0, help="Which prompts --num_prompts takes; compare runs of one.")
    add("--images_per_prompt", type=positive, default=1, help="2 or more measure diversity within a prompt (Fig. 8).")
    add("--seed", type=int, default=0, help="Seed of the first image; the others count up.")
    add("--batch_size", type=positive, default=8, help="Images a call; 1 for pipelines of one generator (aMUSEd).")
    add("--timing_repeats", type=int, default=5, help="Images at batch 1 for seconds and memory; 0 measures neither.")
    add("--device", default=None, help="cpu, cuda, cuda:1; default: the accelerator if there is one.")


def _measure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="Folders that `generate` filled.")
    add("--reference", type=Path, default=None, help="Folder of real images, e.g. val2017.")
    _dataset(parser)
    add("--image_column", default="image", help="Column of the real images in --dataset_name.")
    add("--reference_cache", type=Path, default=Path("build/reference"), help="Keeps images of --dataset_name.")
    add("--num_reference", type=positive, default=None, help="Use only the first so many real images.")
    add("--metrics", nargs="+", choices=METRICS, default=list(METRICS), help="Which figures.")
    add("--inception_weights", type=Path, default=None, help="File of torch-fidelity's Inception; default: downloaded.")
    add("--dino_model", default=DINOV2, help="Hub id or folder of the DINOv2 for fd_dinov2, prdc and diversity.")
    add("--clip_model", default=CLIP, help="Hub id or folder of the CLIP for clip_score.")
    add("--evaluator", default=None, help="Folder of the tiny world's evaluator, in place of the other networks.")
    add("--batch_size", type=positive, default=32, help="Images that a network sees at once.")
    add("--device", default=None, help="cpu, cuda, cuda:1; default: the accelerator if there is one.")


def _compare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="Folders of runs over the same prompts and seeds.")
    add("--output_dir", type=Path, required=True, help="Gets comparison.md, comparison.json and comparison.html.")
    add("--elo", type=Path, default=None, help="File of `python -m evaluation.preference elo --output`, for Fig. 7.")
    add("--num_shown", type=positive, default=12, help="Prompts in the grid of images.")
# fmt: on


def run_generate(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Draw a run."""
    if (args.prompts is None) == (args.dataset_name is None):
        raise EvaluationError("give the prompts by --prompts FILE or by --dataset_name ID, one of the two.")
    if args.timing_repeats < 0:
        raise EvaluationError(f"--timing_repeats {args.timing_repeats}: 0 or more.")
    spec = PipelineSpec(
        args.model, args.revision, args.variant, args.torch_dtype, args.unet, args.lora_weights, args.scheduler,
        args.scheduler_args, not args.no_safety_checker,
    )  # fmt: skip
    prompts = choose_prompts(_prompts(args), args.num_prompts, args.prompt_seed)
    named = ("num_inference_steps", "guidance_scale", "negative_prompt", "height", "width")
    call = {key: getattr(args, key) for key in named if getattr(args, key) is not None} | args.call_args
    manifest = {
        "name": args.name or args.output_dir.resolve().name,
        **asdict(spec),
        "call": call,
        "resolution": args.resolution,
        "images_per_prompt": args.images_per_prompt,
        "seed": args.seed,
        "num_prompts": len(prompts),
    }
    run = Run.start(args.output_dir, manifest, prompts)
    to_time = args.timing_repeats and run.read("speed.json") is None
    if not run.missing() and not to_time:
        print(f"{run.folder}: all {len(run.shots)} images are there.")
        return
    device = environment.pick_device(args.device)
    pipeline = load_pipeline(spec, device)
    if to_time:  # before the batches, which would raise the peak of memory
        figures = measure_speed(pipeline, prompts[0], args.timing_repeats, device, call)
        for figure in figures.values():
            figure |= {**facts, "environment": environment.describe(device)}
        write_json(run.folder / "speed.json", {"figures": figures})
    generate(pipeline, run, args.batch_size, args.resolution, call)
    print(f"{run.folder}: {len(run.shots)} images of {len(prompts)} prompts.")


def _prompts(args: argparse.Namespace) -> list[str]:
    if args.prompts:
        return read_prompts(args.prompts, args.caption_column)
    return load_dataset_prompts(args.dataset_name, args.dataset_config_name, args.dataset_split, args.caption_column)


def run_measure(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Measure runs, all against the same real images."""
    runs = [Run.open(folder) for folder in args.runs]
    for run in runs:
        run.require_complete()
    needs_reference = args.evaluator or set(args.metrics) - {"clip_score"}
    files = _reference_files(args) if needs_reference else []
    if needs_reference:
        check_metrics(args.metrics, min(len(run.prompts) for run in runs), len(files))
    device = environment.pick_device(args.device)
    observers = load_observers(
        args.metrics, device, args.dino_model, args.clip_model, args.inception_weights, args.evaluator
    )
    references = References(files, observers, args.batch_size)
    facts = {**facts, "environment": environment.describe(device)}
    for run in runs:
        figures = measure_run(run, observers, references, args.batch_size)
        for figure in figures.values():
            figure |= {"reference": str(args.reference or args.dataset_name)} if "n_reference" in figure else {}
            figure |= facts
        earlier = (run.read("metrics.json") or {"figures": {}})["figures"]
        write_json(run.folder / "metrics.json", {"figures": earlier | figures})
        print(f"{run.name}: " + ", ".join(f"{key} {figure['value']:.4g}" for key, figure in figures.items()))


def _reference_files(args: argparse.Namespace) -> list[Path]:
    if (args.reference is None) == (args.dataset_name is None):
        raise EvaluationError("give the real images by --reference FOLDER or by --dataset_name ID, one of the two.")
    if args.reference:
        return find_images(args.reference, args.num_reference)
    folder = export_dataset(
        args.dataset_name, args.dataset_config_name, args.dataset_split, args.image_column, args.reference_cache
    )
    return find_images(folder, args.num_reference)


def run_compare(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Compare runs."""
    if len(args.runs) < 2:
        raise EvaluationError("compare needs at least two runs.")
    elo = json.loads(args.elo.read_text(encoding="utf-8")) if args.elo else None
    facts = {**facts, "environment": environment.describe("cpu")}
    print(write_comparison(open_comparable(args.runs), args.output_dir, elo, args.num_shown, facts))


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    facts = {"command": shlex.join(["python", "-m", "evaluation", *argv])}
    commands = {"generate": run_generate, "measure": run_measure, "compare": run_compare}
    return exit_status(lambda: commands[args.command](args, facts))


if __name__ == "__main__":
    sys.exit(main())

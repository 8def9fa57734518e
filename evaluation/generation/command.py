"""Options and implementation of `python -m evaluation generate`."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.command_line import parse_count, parse_finite, parse_json_object
from evaluation.errors import EvaluationError
from evaluation.generation.generate_run import draw_missing, measure_speed
from evaluation.generation.loading import DTYPES, PipelineSpec, load_pipeline
from evaluation.generation.prompts import choose_prompts, load_dataset_prompts, read_prompts
from evaluation.runs.environment import describe_environment, pick_device
from evaluation.runs.files import write_json
from evaluation.runs.run import Run, format_size

CALL_ARGUMENTS = ("num_inference_steps", "guidance_scale", "negative_prompt", "height", "width")


# The formatter would wrap each option over several lines.
# fmt: off
def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `generate`."""
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="Folder of the run. An interrupted run is continued.")
    add("--name", default=None, help="Name of the run in tables. Defaults to the name of the folder.")
    add("--model", required=True, help="Hub id or folder of a diffusers text-to-image pipeline.")
    add("--revision", default=None, help="Branch, tag or commit of the model's Hub repo.")
    add("--variant", default=None, help="Variant of the weight files, such as fp16.")
    add("--torch_dtype", choices=DTYPES, default="float32", help="Precision of the weights.")
    add("--unet", default=None, help="Id of a UNet that replaces the pipeline's, e.g. latent-consistency/lcm-sdxl.")
    add("--lora_weights", default=None, help="Id of LoRA weights to load, e.g. latent-consistency/lcm-lora-sdv1-5.")
    add("--scheduler", default=None, help="Scheduler class, e.g. DPMSolverMultistepScheduler; default: as saved.")
    add("--scheduler_args", type=parse_json_object, default={}, help="JSON object that updates the scheduler's config.")
    add("--no_safety_checker", action="store_true", help="Remove the safety checker, which blackens images.")
    add("--num_inference_steps", type=parse_count, default=None, help="Number of sampling steps. Defaults to the "
        "pipeline's default.")
    add("--guidance_scale", type=parse_finite, default=None, help="Guidance scale. Use 0 for a student of ADD.")
    add("--negative_prompt", default=None, help="Negative prompt for all images.")
    add("--height", type=parse_count, default=None, help="Height in pixels. Defaults to that in the model's config.")
    add("--width", type=parse_count, default=None, help="Width in pixels. Defaults to the size in the model's config.")
    add("--call_args", type=parse_json_object, default={}, help="JSON object of other arguments of the call.")
    add("--resolution", type=parse_count, default=512, help="Before saving, images whose shorter side is larger than "
        "this many pixels are resized to it, as in the paper. It does not change the size that is generated.")
    add("--prompts", type=Path, default=None, help="File with prompts: .txt (one per line), .tsv (PartiPrompts), .json "
        "(COCO captions), or .jsonl (metadata of an image folder).")
    add_dataset_options(parser)
    add("--caption_column", default="text", help="Column of the prompts in a data set or .jsonl file.")
    add("--num_prompts", type=parse_count, default=None, help="Number of randomly selected prompts. Defaults to all.")
    add("--prompt_seed", type=int, default=0, help="Seed for the selection of --num_prompts. Only runs with the same "
        "prompts can be compared.")
    add("--images_per_prompt", type=parse_count, default=1, help="Images per prompt. With 2 or more, the diversity "
        "within a prompt can be measured (Fig. 8).")
    add("--seed", type=int, default=0, help="Seed of the first image. The seeds of the others count up from it.")
    add("--batch_size", type=parse_count, default=8, help="Images per call. Use 1 for pipelines that only accept one "
        "generator, such as aMUSEd.")
    add("--timing_repeats", type=int, default=5, help="Number of images at batch size 1 for measuring seconds and "
        "memory. 0 disables the measurement.")
    add("--device", default=None, help="Device, such as cpu, cuda or cuda:1. Defaults to the accelerator, if any.")


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that name a data set of prompts or of real images."""
    add = parser.add_argument
    add("--dataset_name", default=None, help="Hub id or folder of a data set, e.g. of COCO 2017 or PartiPrompts.")
    add("--dataset_config_name", default=None, help="Configuration of the data set, if it has several.")
    add("--dataset_split", default="validation", help="Split of the data set.")
# fmt: on


def run_generate(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Generate the images of a run.

    Args:
        args: parsed options of `add_options`.
        facts: the command, which is stored with the figures.

    Raises:
        EvaluationError: an option is invalid, or the pipeline cannot generate the images.
    """
    if (args.prompts is None) == (args.dataset_name is None):
        raise EvaluationError("give the prompts with either --prompts FILE or --dataset_name ID.")
    if args.timing_repeats < 0:
        raise EvaluationError(f"--timing_repeats {args.timing_repeats}: give 0 or more.")
    spec = _pipeline_spec(args)
    prompts = choose_prompts(_read_prompts(args), args.num_prompts, args.prompt_seed)
    call = {key: getattr(args, key) for key in CALL_ARGUMENTS if getattr(args, key) is not None} | args.call_args
    run = Run.start(args.output_dir, _make_manifest(args, spec, call, len(prompts)), prompts)
    to_time = args.timing_repeats and run.read("speed.json") is None
    if not run.missing() and not to_time:
        print(f"{run.folder}: all {len(run.shots)} images exist.")
        return
    device = pick_device(args.device)
    pipeline = load_pipeline(spec, device)
    if to_time:  # before the batches, which would increase the peak memory
        figures = measure_speed(pipeline, prompts[0], args.timing_repeats, device, call)
        for figure in figures.values():
            figure |= {**facts, "environment": describe_environment(device)}
        write_json(run.folder / "speed.json", {"figures": figures})
    draw_missing(pipeline, run, args.batch_size, args.resolution, call)
    saved = "" if run.saved_size == run.drawn_size else f", saved at {format_size(run.saved_size)}"
    print(
        f"{run.folder}: {len(run.shots)} images for {len(prompts)} prompts, generated at {format_size(run.drawn_size)} "
        f"pixels{saved}."
    )


def _pipeline_spec(args: argparse.Namespace) -> PipelineSpec:
    return PipelineSpec(
        model=args.model,
        revision=args.revision,
        variant=args.variant,
        torch_dtype=args.torch_dtype,
        unet=args.unet,
        lora_weights=args.lora_weights,
        scheduler=args.scheduler,
        scheduler_args=args.scheduler_args,
        safety_checker=not args.no_safety_checker,
    )


def _make_manifest(args: argparse.Namespace, spec: PipelineSpec, call: dict, num_prompts: int) -> dict[str, Any]:
    return {
        "name": args.name or args.output_dir.resolve().name,
        **asdict(spec),
        "call": call,
        "resolution": args.resolution,
        "images_per_prompt": args.images_per_prompt,
        "seed": args.seed,
        "num_prompts": num_prompts,
    }


def _read_prompts(args: argparse.Namespace) -> list[str]:
    if args.prompts:
        return read_prompts(args.prompts, args.caption_column)
    return load_dataset_prompts(args.dataset_name, args.dataset_config_name, args.dataset_split, args.caption_column)

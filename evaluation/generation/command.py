"""`python -m evaluation generate`: its options, and what it does."""

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


# One option a line where it fits: this is a table, and the formatter would make it three screens longer.
# fmt: off
def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `generate`."""
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="The run's folder. A run that was interrupted is continued.")
    add("--name", default=None, help="Name of the run in tables; by default the folder's name.")
    add("--model", required=True, help="Hub id or folder of a diffusers text-to-image pipeline.")
    add("--revision", default=None, help="Branch, tag or commit of the model's Hub repo.")
    add("--variant", default=None, help="Variant of the weight files, such as fp16.")
    add("--torch_dtype", choices=DTYPES, default="float32", help="Precision of the weights.")
    add("--unet", default=None, help="Id of a UNet that replaces the pipeline's, e.g. latent-consistency/lcm-sdxl.")
    add("--lora_weights", default=None, help="Id of LoRA weights to load, e.g. latent-consistency/lcm-lora-sdv1-5.")
    add("--scheduler", default=None, help="Class of diffusers, e.g. DPMSolverMultistepScheduler; default: as saved.")
    add("--scheduler_args", type=parse_json_object, default={}, help="JSON that replaces entries of its configuration.")
    add("--no_safety_checker", action="store_true", help="Remove the safety checker, which blackens images.")
    add("--num_inference_steps", type=parse_count, default=None, help="Sampling steps; default: the pipeline's own.")
    add("--guidance_scale", type=parse_finite, default=None, help="Guidance scale; a student of ADD needs 0.")
    add("--negative_prompt", default=None, help="Negative prompt of every image.")
    add("--height", type=parse_count, default=None, help="Pixels; default: the size that the model was trained at, "
        "which its configuration says.")
    add("--width", type=parse_count, default=None, help="Pixels; default: as for --height.")
    add("--call_args", type=parse_json_object, default={}, help="JSON of further arguments of the pipeline's call.")
    add("--resolution", type=parse_count, default=512, help="Images with a longer short side are reduced to this many "
        "pixels before they are saved, as in the paper. It does not change the size that is drawn.")
    add("--prompts", type=Path, default=None, help="File: .txt (one a line), .tsv (PartiPrompts), .json (COCO's "
        "captions), .jsonl (an image folder's metadata).")
    add_dataset_options(parser)
    add("--caption_column", default="text", help="Column of the prompts, of a data set or a .jsonl.")
    add("--num_prompts", type=parse_count, default=None, help="Number of prompts to draw at random; default: all.")
    add("--prompt_seed", type=int, default=0, help="Chooses the prompts that --num_prompts takes. Only runs with equal "
        "prompts can be compared.")
    add("--images_per_prompt", type=parse_count, default=1, help="2 or more measure diversity of a prompt (Fig. 8).")
    add("--seed", type=int, default=0, help="Seed of the first image; the others count up from it.")
    add("--batch_size", type=parse_count, default=8, help="Images in one call; 1 for pipelines that take one generator "
        "only, such as aMUSEd.")
    add("--timing_repeats", type=int, default=5, help="Images at batch 1 for seconds and memory; 0 measures neither.")
    add("--device", default=None, help="cpu, cuda, cuda:1; default: the accelerator if there is one.")


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that name a data set, of prompts or of real images."""
    add = parser.add_argument
    add("--dataset_name", default=None, help="Hub id or folder of a data set, e.g. of COCO 2017 or PartiPrompts.")
    add("--dataset_config_name", default=None, help="Configuration of the data set, where it has several.")
    add("--dataset_split", default="validation", help="Split of the data set.")
# fmt: on


def run_generate(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Draw a run.

    Args:
        args: of `add_options`.
        facts: the command, kept with the figures.

    Raises:
        EvaluationError: an option cannot work, or the pipeline does not draw what is asked for.
    """
    if (args.prompts is None) == (args.dataset_name is None):
        raise EvaluationError("give the prompts by --prompts FILE or by --dataset_name ID, one of the two.")
    if args.timing_repeats < 0:
        raise EvaluationError(f"--timing_repeats {args.timing_repeats}: give 0 or more.")
    spec = _pipeline_spec(args)
    prompts = choose_prompts(_read_prompts(args), args.num_prompts, args.prompt_seed)
    call = {key: getattr(args, key) for key in CALL_ARGUMENTS if getattr(args, key) is not None} | args.call_args
    run = Run.start(args.output_dir, _make_manifest(args, spec, call, len(prompts)), prompts)
    to_time = args.timing_repeats and run.read("speed.json") is None
    if not run.missing() and not to_time:
        print(f"{run.folder}: all {len(run.shots)} images are there.")
        return
    device = pick_device(args.device)
    pipeline = load_pipeline(spec, device)
    if to_time:  # before the batches, which would raise the peak of memory
        figures = measure_speed(pipeline, prompts[0], args.timing_repeats, device, call)
        for figure in figures.values():
            figure |= {**facts, "environment": describe_environment(device)}
        write_json(run.folder / "speed.json", {"figures": figures})
    draw_missing(pipeline, run, args.batch_size, args.resolution, call)
    saved = "" if run.saved_size == run.drawn_size else f", saved at {format_size(run.saved_size)}"
    print(
        f"{run.folder}: {len(run.shots)} images of {len(prompts)} prompts, drawn at {format_size(run.drawn_size)} "
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

"""Options and implementation of `python -m evaluation measure`."""

import argparse
from pathlib import Path
from typing import Any

from evaluation.command_line import parse_count
from evaluation.errors import EvaluationError
from evaluation.generation.command import add_dataset_options
from evaluation.metrics.encoders import CLIP, DINOV2
from evaluation.metrics.measure_run import METRICS, References, check_metrics, load_observers, measure_run
from evaluation.metrics.references import export_dataset, find_images
from evaluation.runs.environment import describe_environment, pick_device
from evaluation.runs.files import write_json
from evaluation.runs.run import Run


# The formatter would wrap each option over several lines.
# fmt: off
def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `measure`."""
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="Folders of runs written by `generate`.")
    add("--reference", type=Path, default=None, help="Folder of real images, e.g. val2017.")
    add_dataset_options(parser)
    add("--image_column", default="image", help="Column of the real images in --dataset_name.")
    add("--reference_cache", type=Path, default=Path("build/reference"), help="Folder for images of --dataset_name.")
    add("--num_reference", type=parse_count, default=None, help="Number of real images to use. Defaults to all.")
    add("--metrics", nargs="+", choices=METRICS, default=list(METRICS), help="Metrics to compute.")
    add("--inception_weights", type=Path, default=None, help="Weight file of torch-fidelity's Inception. By default, "
        "it is downloaded.")
    add("--dino_model", default=DINOV2, help="Hub id or folder of the DINOv2 for fd_dinov2, prdc and diversity.")
    add("--clip_model", default=CLIP, help="Hub id or folder of the CLIP for clip_score.")
    add("--evaluator", default=None, help="Folder of the tiny world's evaluator, to use instead of the other networks.")
    add("--batch_size", type=parse_count, default=32, help="Number of images per forward pass of a network.")
    add("--device", default=None, help="Device, such as cpu, cuda or cuda:1. Defaults to the accelerator, if any.")
# fmt: on


def run_measure(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Measure runs against the same real images.

    Args:
        args: parsed options of `add_options`.
        facts: the command, which is stored with the figures.

    Raises:
        EvaluationError: a run is not complete, or a network, a package or the real images are missing.
    """
    runs = [Run.open(folder) for folder in args.runs]
    for run in runs:
        run.require_complete()
    needs_reference = args.evaluator or set(args.metrics) - {"clip_score"}
    files = _reference_files(args) if needs_reference else []
    if needs_reference:
        check_metrics(args.metrics, min(len(run.prompts) for run in runs), len(files))
    device = pick_device(args.device)
    observers = load_observers(
        args.metrics, device, args.dino_model, args.clip_model, args.inception_weights, args.evaluator
    )
    references = References(files, observers, args.batch_size)
    facts = {**facts, "environment": describe_environment(device)}
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
        raise EvaluationError("give the real images with either --reference FOLDER or --dataset_name ID.")
    if args.reference:
        return find_images(args.reference, args.num_reference)
    folder = export_dataset(
        args.dataset_name, args.dataset_config_name, args.dataset_split, args.image_column, args.reference_cache
    )
    return find_images(folder, args.num_reference)

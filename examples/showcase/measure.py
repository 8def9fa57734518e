"""Measure the showcase's networks on held-out pictures, and on held-out combinations of objects.

    python -m examples.showcase.measure --networks_dir build/world/networks --pictures_dir build/world/pictures \\
      --output_dir build/world/measured

writes `figures.json` and `samples.png` to the output folder. The rows of the samples are real pictures, the teacher in
25 steps with guidance, and the teacher in one step, for the same captions and noises, first of `test`, then of
`held_out`.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from transformers import ResNetForImageClassification

from evaluation.tiny.split import Split, read_split
from examples.showcase.objects import ATTRIBUTION
from examples.tiny.captioned.gates import Gate
from examples.tiny.captioned.teacher import GUIDANCE, MEASURED_PICTURES, STEPS, draw_pictures, measure_teacher
from examples.tiny.captioned.vision import look, read_attributes
from examples.tiny.teacher import PREVIEW_COLUMNS, save_grid
from training.command import command_name

ADVICE = "Train longer with `make world`"
EVALUATOR_BOUND = 0.97
TEACHER_GATES = (Gate("agreement", 0.9, ADVICE), Gate("relative_distance", 3.0, ADVICE, at_most=True))
# One step of the teacher has to be bad, because otherwise distillation would not be needed.
ONE_STEP_GATES = (Gate("relative_distance", 6.0, ADVICE),)
SPLITS = ("test", "held_out")


def measure_evaluator(evaluator: ResNetForImageClassification, split: Split) -> dict[str, float]:
    """Fraction of real pictures whose attributes are predicted correctly: for all attributes together, and for each."""
    attributes = read_attributes(evaluator)
    return attributes.agreement(look(evaluator, split.pixels)[1], attributes.targets(split))


def evaluator_gates(figures: dict[str, float]) -> tuple[Gate, ...]:
    """A gate for each single attribute in `figures`."""
    return tuple(Gate(name, EVALUATOR_BOUND, ADVICE) for name in figures if name.startswith("agreement_"))


def missed(figures: dict[str, dict]) -> list[str]:
    """Describe the thresholds that the `figures` of evaluator and teacher on `test` miss."""
    evaluator = figures["evaluator"]["test"]
    checks = [
        ("evaluator", evaluator, evaluator_gates(evaluator)),
        (f"teacher, {STEPS} steps", figures["teacher"]["test"], TEACHER_GATES),
        ("teacher, 1 step", figures["teacher_one_step"]["test"], ONE_STEP_GATES),
    ]
    return [f"{who}: {gate.report(values)}" for who, values, gates in checks for gate in gates if not gate.met(values)]


def draw_samples(path: Path, pipeline: DiffusionPipeline, splits: dict[str, Split], guidance: float) -> None:
    """Write three rows of pictures for the first captions of each split: real, many steps, one step."""
    rows = []
    for split in splits.values():
        captions = split.captions[:PREVIEW_COLUMNS]
        rows += [split.pixels[: len(captions)]]
        rows += [draw_pictures(pipeline, captions, *settings) for settings in ((STEPS, guidance), (1, 1.0))]
    save_grid(path, torch.cat(rows) / 2 + 0.5)


def measure(networks: Path, pictures: Path, out: Path, guidance: float, count: int) -> dict[str, dict]:
    """Measure evaluator and teacher on all `SPLITS`, and write the files. Returns the figures."""
    evaluator = ResNetForImageClassification.from_pretrained(networks / "evaluator", dtype=torch.float32).eval()
    pipeline = DiffusionPipeline.from_pretrained(networks / "teacher", torch_dtype=torch.float32)
    train = read_split(pictures / "train")
    splits = {name: read_split(pictures / name) for name in SPLITS}
    ways = {"teacher": (STEPS, guidance), "teacher_one_step": (1, 1.0)}
    figures: dict[str, dict] = {"evaluator": {name: measure_evaluator(evaluator, s) for name, s in splits.items()}}
    for who, (steps, scale) in ways.items():
        figures[who] = {
            name: measure_teacher(pipeline, evaluator, train, split, steps, scale, count)
            for name, split in splits.items()
        }
    out.mkdir(parents=True, exist_ok=True)
    content = {"guidance": guidance, "pictures": count, **figures, "missed": missed(figures), "artwork": ATTRIBUTION}
    (out / "figures.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    draw_samples(out / "samples.png", pipeline, splits, guidance)
    return figures


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog=command_name("examples.showcase.measure"),
        description="Measure the showcase's evaluator and teacher on pictures that training has not seen.",
    )
    parser.add_argument(
        "--networks_dir",
        type=Path,
        required=True,
        help="Output folder of examples.tiny.build or examples.showcase.pack.",
    )
    parser.add_argument("--pictures_dir", type=Path, required=True, help="Output folder of examples.showcase.write.")
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder for figures.json and samples.png.")
    text = f"Guidance scale of the teacher in {STEPS} steps (default: {GUIDANCE:g})."
    parser.add_argument("--guidance_scale", type=float, default=GUIDANCE, help=text)
    text = f"Number of generated pictures for each figure, at least 2 (default: {MEASURED_PICTURES})."
    parser.add_argument("--num_pictures", type=int, default=MEASURED_PICTURES, help=text)
    args = parser.parse_args(argv)
    for flag, folder, names in (
        ("--networks_dir", args.networks_dir, ("teacher/model_index.json", "evaluator/config.json")),
        ("--pictures_dir", args.pictures_dir, [f"{name}/metadata.jsonl" for name in ("train", *SPLITS)]),
    ):
        for name in names:
            if not (folder / name).is_file():
                parser.error(f"{flag} {folder}: no {name} there; build it with `make world`")
    if args.num_pictures < 2:
        parser.error(f"--num_pictures must be 2 or more, got {args.num_pictures}")
    if args.guidance_scale < 1:
        parser.error(f"--guidance_scale must be 1 or more, got {args.guidance_scale:g}")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process. Exits with status 1 if a threshold is missed."""
    args = parse_args(argv)
    figures = measure(args.networks_dir, args.pictures_dir, args.output_dir, args.guidance_scale, args.num_pictures)
    for who, splits in figures.items():
        for name, values in splits.items():
            print(f"{who}, {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    if lines := missed(figures):
        sys.exit("\n".join(f"missed: {line}" for line in lines))


if __name__ == "__main__":
    main()

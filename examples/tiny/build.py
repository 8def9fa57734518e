"""Build the tiny world: real data and small real models in the standard layouts, on a CPU, in minutes.

    python -m examples.tiny.build --output_dir build/tiny

leaves in the output folder

    data/             image folder with captions, train and test       datasets.load_dataset("imagefolder", ...)
    clip/             tokenizer and CLIP                                CLIPModel, CLIPTextModelWithProjection
    autoencoder/      the KL autoencoder                                AutoencoderKL
    teacher/          the whole pipeline                                StableDiffusion(XL)Pipeline
    feature_network/  F of the discriminator                            Dinov2Model
    evaluator/        classifier and features for the Frechet distance  Dinov2ForImageClassification
    preview/          a grid of the teacher's pictures
    build.json        arguments, hashes, measured quality, seconds

`--layout sdxl` adds clip_2/, the teacher's second text encoder, and trains an autoencoder of its own: a student and
a teacher of different layouts are of different latent spaces. All else is the same in both, to the byte.

Called again, it keeps what is whole and unchanged and builds the rest.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import diffusers
import torch
import transformers

from examples.tiny import autoencoder, clip, data, images, layouts, loop, models, teacher, vision
from examples.tiny.manifest import Manifest

COMMON = (loop, models, images, data)
TEACHER = (teacher, layouts, autoencoder, clip, *COMMON)
# What a layout changes has random numbers of its own, so that SDXL's latent space is another one.
OWN = ("clip_2", "autoencoder", "teacher")


def stages(layout: str) -> dict[str, tuple]:
    """In order, each stage's name: (modules whose code decides the result, stages it reads, iterations)."""
    clips = ("clip", "clip_2") if layout == "sdxl" else ("clip",)
    return {
        "data": ((data,), (), 0),
        **dict.fromkeys(clips, ((clip, *COMMON), ("data",), clip.ITERATIONS)),
        "autoencoder": ((autoencoder, *COMMON), ("data",), autoencoder.ITERATIONS),
        "teacher": (TEACHER, ("data", *clips, "autoencoder"), teacher.ITERATIONS),
        "feature_network": ((vision, clip, *COMMON), ("data", "clip"), vision.FEATURE_ITERATIONS),
        "evaluator": ((vision, *COMMON), ("data",), vision.EVALUATOR_ITERATIONS),
        "preview": ((vision, *TEACHER), ("data", "teacher", "evaluator"), 0),
    }


def stream(name: str, layout: str, seed: int) -> int:
    """The seed of a stage's random numbers: its own, so that it can be built again alone with the same result."""
    key = f"{name} {layout} {seed}" if layout != "sd" and name in OWN else f"{name} {seed}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big")


def hash_code(modules: Iterable[ModuleType]) -> str:
    """SHA-256 of the modules' source: whoever edits a stage gets it built anew."""
    return hashlib.sha256(b"".join(Path(module.__file__).read_bytes() for module in modules)).hexdigest()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.tiny.build",
        description="Build a small but whole text-to-image world on a CPU: data, CLIP, autoencoder, teacher, "
        "discriminator feature network and evaluator, each in its standard layout.",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder to build in.")
    parser.add_argument(
        "--layout",
        choices=("sd", "sdxl"),
        default="sd",
        help="Layout of the teacher: sd, one text encoder; sdxl, two, and size conditioning. Default: sd.",
    )
    parser.add_argument(
        "--prediction_type",
        choices=("epsilon", "v_prediction"),
        default="epsilon",
        help="What the teacher predicts. Default: epsilon, as Stable Diffusion 1.5; 2.1 has v_prediction.",
    )
    parser.add_argument(
        "--train_data_dir",
        type=Path,
        help="Image folder with a `text` column (and perhaps `label`), as datasets.load_dataset reads it. "
        "Default: scikit-learn's handwritten digits.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything random. Default: 0.")
    parser.add_argument(
        "--iterations_scale",
        type=float,
        default=1.0,
        help="Multiplies the iterations of every stage: 0.01 shows in seconds that all runs, 3 trains longer. "
        "Default: 1.0, about four minutes on two cores.",
    )
    args = parser.parse_args(argv)
    if not 0 < args.iterations_scale < float("inf"):
        parser.error(f"--iterations_scale must be above 0, got {args.iterations_scale}")
    if args.seed < 0:
        parser.error(f"--seed must be 0 or more, got {args.seed}")
    if args.train_data_dir is not None:
        source, target = args.train_data_dir.resolve(), args.output_dir.resolve()
        if source == target or target in source.parents:
            parser.error(f"--train_data_dir {args.train_data_dir} lies in --output_dir, which is written anew")
    return args


def build(args: argparse.Namespace) -> Manifest:
    """Build or find every stage in `args.output_dir`. Returns the manifest.

    Raises:
        ValueError: the data or the output folder cannot be used; nothing has been trained then.
    """
    root: Path = args.output_dir
    # Read before the output folder is touched: a bad data set is refused without leaving anything behind.
    examples = data.load_image_folder(args.train_data_dir, args.seed) if args.train_data_dir else None
    arguments = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "output_dir"}
    manifest = Manifest.open(root, arguments)
    source = "digits" if examples is None else data.fingerprint_folder(args.train_data_dir)
    # Now, not stage by stage: what runs is the code as it was imported, even if a file is edited meanwhile.
    plan = stages(args.layout)
    code = {name: hash_code(modules) for name, (modules, _, _) in plan.items()}
    split: dict[str, data.Split] = {}

    def write_data(out: Path, _: int) -> dict:
        train, test = examples or data.load_digits(args.seed)
        data.write_split(out / "train", train)
        data.write_split(out / "test", test)
        captions = {example.text for example in train + test}
        labels = {example.label for example in train + test}
        return {"train": len(train), "test": len(test), "captions": len(captions), "labels": len(labels)}

    def run(name: str, function, **extra) -> None:
        _, needs, iterations = plan[name]
        iterations = max(1, round(iterations * args.iterations_scale)) if iterations else 0
        inputs = {
            "seed": args.seed,
            "iterations": iterations,
            **({"layout": args.layout} if name in OWN else {}),
            **extra,
            **{need: manifest.digest(need) for need in needs},
            "code": code[name],
        }

        def seeded(out: Path) -> dict:
            if name != "data" and not split:
                split.update({half: data.read_split(root / "data" / half) for half in ("train", "test")})
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stream(name, args.layout, args.seed))
                return function(out, iterations)

        manifest.ensure(name, inputs, seeded)

    run("data", write_data, source=source)
    run("clip", lambda out, n: clip.train_clip(out, split["train"], split["test"], n))
    if "clip_2" in plan:
        second = {"width": models.TEXT_WIDTH_2, "pad_token": "!"}
        run("clip_2", lambda out, n: clip.train_clip(out, split["train"], split["test"], n, **second))
    run("autoencoder", lambda out, n: autoencoder.train_autoencoder(out, split["train"], split["test"], n))
    clips = [root / name for name in ("clip", "clip_2") if name in plan]
    run(
        "teacher",
        lambda out, n: teacher.train_teacher(out, clips, root / "autoencoder", split["train"], args.prediction_type, n),
        prediction_type=args.prediction_type,
    )
    run(
        "feature_network",
        lambda out, n: vision.train_feature_network(out, root / "clip", split["train"], split["test"], n),
    )
    run("evaluator", lambda out, n: vision.train_evaluator(out, split["train"], split["test"], n))
    run("preview", lambda out, _: teacher.preview_teacher(out, root / "teacher", root / "evaluator", split["test"]))
    return manifest


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    for library in (diffusers, transformers):
        # Their bars and reports on each file loaded or saved would bury the training's own.
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    try:
        build(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

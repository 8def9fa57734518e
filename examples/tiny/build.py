"""Build the tiny world: real data and small models in the standard layouts, on a CPU, in minutes.

    python -m examples.tiny.build --output_dir build/tiny

writes to the output folder

    data/             image folder with captions, train and test       datasets.load_dataset("imagefolder", ...)
    clip/             tokenizer and CLIP                                CLIPModel, CLIPTextModelWithProjection
    autoencoder/      the KL autoencoder                                AutoencoderKL
    teacher/          the complete pipeline                             StableDiffusion(XL)Pipeline
    feature_network/  F of the discriminator                            Dinov2Model
    evaluator/        classifier and features for the Frechet distance  Dinov2ForImageClassification, or for
                      --train_data_dir ResNetForImageClassification
    preview/          a grid of samples of the teacher
    build.json        arguments, hashes, measured quality, seconds

With `--train_data_dir`, the size of the networks depends on the images, and each stage is measured on held-out images.
A stage that misses its threshold is trained for some more rounds; if this is not enough, the build stops with an error
that suggests a fix. A killed build can be continued by the same command.

`--layout sdxl` adds clip_2/, the teacher's second text encoder, and trains a separate autoencoder, so that the two
layouts have different latent spaces. All other files are identical in both layouts.

A repeated command keeps complete and unchanged stages and builds the others.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import diffusers
import torch
import transformers

from evaluation.tiny import split as splits
from evaluation.tiny.split import Split, read_split
from examples.tiny import autoencoder, clip, data, images, layouts, loop, models, teacher, vision
from examples.tiny.captioned import autoencoder as captioned_autoencoder
from examples.tiny.captioned import clip as captioned_clip
from examples.tiny.captioned import gates, plan, reading
from examples.tiny.captioned import teacher as captioned_teacher
from examples.tiny.captioned import vision as captioned_vision
from examples.tiny.manifest import Manifest
from training.command import command_name

CHECKPOINTS = ".checkpoints"  # subfolder of the output folder for unfinished stages
COMMON = (loop, models, images, data, splits)
TEACHER = (teacher, layouts, autoencoder, clip, *COMMON)
# Stages that depend on the layout have separate random numbers, so that the layouts have different latent spaces.
OWN = ("clip_2", "autoencoder", "teacher")


def stages(layout: str) -> dict[str, tuple]:
    """The stages in order: name to (modules that the result depends on, stages that it reads, iterations)."""
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


def captioned_stages(layout: str, lengths: dict[str, int]) -> dict[str, tuple]:
    """The stages for a captioned folder. The evaluator is built before the teacher, which it measures."""
    clips = ("clip", "clip_2") if layout == "sdxl" else ("clip",)
    common = (gates, plan, reading, *COMMON)
    encoder, eyes = (captioned_clip, clip, *common), (captioned_vision, *common)
    vae = (captioned_autoencoder, autoencoder, *common)
    drawing = (captioned_teacher, teacher, layouts, *vae, *eyes, *encoder)
    return {
        "data": ((data,), (), 0),
        "autoencoder": (vae, ("data",), lengths["autoencoder"]),
        **dict.fromkeys(clips, (encoder, ("data",), lengths["clip"])),
        "evaluator": (eyes, ("data",), lengths["evaluator"]),
        "feature_network": ((vision, *encoder, *eyes), ("data", "clip"), lengths["feature_network"]),
        "teacher": (drawing, ("data", *clips, "autoencoder", "evaluator"), lengths["teacher"]),
        "preview": (drawing, ("data", "teacher", "evaluator"), 0),
    }


def stream(name: str, layout: str, seed: int) -> int:
    """The seed of a stage. Each stage has its own, so that it can be rebuilt separately with the same result."""
    key = f"{name} {layout} {seed}" if layout != "sd" and name in OWN else f"{name} {seed}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big")


def hash_code(modules: Iterable[ModuleType]) -> str:
    """SHA-256 hash of the modules' source, so that a stage is rebuilt when its code changes."""
    return hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in modules)).hexdigest()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog=command_name("examples.tiny.build"),
        description="Build a small but complete text-to-image world on a CPU: data, CLIP, autoencoder, teacher, "
        "discriminator feature network and evaluator, each in its standard layout.",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="Output folder.")
    parser.add_argument(
        "--layout",
        choices=("sd", "sdxl"),
        default="sd",
        help="Layout of the teacher: sd has one text encoder; sdxl has two, and size conditioning (default: sd).",
    )
    parser.add_argument(
        "--prediction_type",
        choices=("epsilon", "v_prediction"),
        default="epsilon",
        help="Prediction type of the teacher (default: epsilon, as in Stable Diffusion 1.5; 2.1 uses v_prediction).",
    )
    parser.add_argument(
        "--train_data_dir",
        type=Path,
        help="Image folder with a `text` column (and optionally `label`), in the layout that datasets.load_dataset "
        "reads. Defaults to scikit-learn's handwritten digits.",
    )
    parser.add_argument(
        "--resolution",
        type=int,
        choices=plan.RESOLUTIONS,
        help="Height and width of the images in pixels, for --train_data_dir (default: 32). The digits have 32.",
    )
    parser.add_argument(
        "--max_rounds",
        type=int,
        default=3,
        help="Maximum number of training rounds of a stage of --train_data_dir until it reaches its threshold. The "
        "first round has all iterations, the others half of them (default: 3).",
    )
    parser.add_argument(
        "--gates",
        choices=("enforce", "report"),
        default="enforce",
        help="Whether a threshold that is missed after the last round stops the build, or is only reported (default: "
        "enforce).",
    )
    parser.add_argument(
        "--accept_older_code",
        action="store_true",
        help="Keep and continue stages that were built by other versions of this code, instead of rebuilding them.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Random seed (default: 0).")
    parser.add_argument(
        "--iterations_scale",
        type=float,
        default=1.0,
        help="Factor for the iterations of all stages. 0.01 is a quick test of a few seconds, 3 trains longer. The "
        "default of 1.0 takes about four minutes for the digits and twenty for 1,500 images of 32 pixels on two cores.",
    )
    args = parser.parse_args(argv)
    if args.resolution is not None and args.train_data_dir is None:
        parser.error(f"--resolution {args.resolution} requires --train_data_dir; the digits have 32 pixels")
    if args.max_rounds < 1:
        parser.error(f"--max_rounds must be 1 or more, got {args.max_rounds}")
    if not 0 < args.iterations_scale < float("inf"):
        parser.error(f"--iterations_scale must be above 0, got {args.iterations_scale}")
    if args.seed < 0:
        parser.error(f"--seed must be 0 or more, got {args.seed}")
    if args.train_data_dir is not None:
        source, target = args.train_data_dir.resolve(), args.output_dir.resolve()
        if source == target or target in source.parents:
            parser.error(f"--train_data_dir {args.train_data_dir} is inside --output_dir, which is overwritten")
    return args


class Builder:
    """Builds the stages of one world in order, unless they exist already.

    Args:
        args: parsed command line.
        manifest: records of the existing stages.
        plan: modules, required stages and iterations of each stage, from `stages` or `captioned_stages`.
    """

    def __init__(self, args: argparse.Namespace, manifest: Manifest, plan: dict[str, tuple]):
        self.args, self.manifest, self.plan = args, manifest, plan
        # Hash all modules now, because the imported code is run even if a file is edited later.
        self.code = {name: hash_code(modules) for name, (modules, _, _) in plan.items()}
        self.split: dict[str, Split] = {}

    @property
    def clips(self) -> list[Path]:
        """The folders of the text encoders."""
        return [self.args.output_dir / name for name in ("clip", "clip_2") if name in self.plan]

    def run(self, name: str, function: Callable[..., dict], **extra) -> None:
        """Build the stage `name` with `function(folder, iterations)`, unless it exists. `extra` are further inputs."""
        _, needs, iterations = self.plan[name]
        inputs = {
            "seed": self.args.seed,
            "iterations": self.scale(iterations),
            **({"layout": self.args.layout} if name in OWN else {}),
            **extra,
            **{need: self.manifest.digest(need) for need in needs},
            "code": self.code[name],
        }
        folder = self.args.output_dir / "data"

        def seeded(out: Path) -> dict:
            if name != "data" and not self.split:
                self.split.update({half: read_split(folder / half) for half in ("train", "test")})
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stream(name, self.args.layout, self.args.seed))
                return function(out, self.scale(iterations))

        self.manifest.ensure(name, inputs, seeded, ignored=("code",) if self.args.accept_older_code else ())

    def train(self, name: str, function: Callable[..., dict], **extra) -> None:
        """Build the stage `name` of a captioned folder with `function(folder, course)`, unless it exists."""

        def follow(out: Path, iterations: int) -> dict:
            needs = {need: self.manifest.digest(need) for need in self.plan[name][1]}
            code = "" if self.args.accept_older_code else self.code[name]
            key = json.dumps([name, self.args.seed, self.args.layout, iterations, extra, needs, code])
            path = self.args.output_dir / CHECKPOINTS / f"{name}.pt"
            checkpoint = loop.Checkpoint(path, key)
            return function(
                out, gates.Course(name, iterations, self.args.max_rounds, self.args.gates == "enforce", checkpoint)
            )

        self.run(name, follow, **extra)
        (self.args.output_dir / CHECKPOINTS / f"{name}.pt").unlink(missing_ok=True)

    def scale(self, iterations: int) -> int:
        """Number of iterations multiplied by `--iterations_scale`."""
        return max(1, round(iterations * self.args.iterations_scale)) if iterations else 0


def write_data(out: Path, train: list[data.Example], test: list[data.Example]) -> dict:
    """Write both splits to `out`. Returns their figures."""
    data.write_split(out / "train", train)
    data.write_split(out / "test", test)
    captions = {example.text for example in train + test}
    labels = {example.label for example in train + test}
    return {"train": len(train), "test": len(test), "captions": len(captions), "labels": len(labels)}


def build(args: argparse.Namespace) -> Manifest:
    """Build all stages in `args.output_dir` that do not exist yet. Returns the manifest.

    Raises:
        ValueError: the data or the output folder cannot be used (raised before any training); or a stage has missed its
            threshold.
    """
    if args.train_data_dir:
        return build_captioned(args)
    return build_digits(args)


def open_manifest(args: argparse.Namespace) -> Manifest:
    """Open the records in the output folder with the arguments of this call."""
    arguments = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "output_dir"}
    return Manifest.open(args.output_dir, arguments)


def build_digits(args: argparse.Namespace) -> Manifest:
    """Build the world of the digits."""
    root: Path = args.output_dir
    builder = Builder(args, open_manifest(args), stages(args.layout))
    run, split = builder.run, builder.split
    run("data", lambda out, _: write_data(out, *data.load_digits(args.seed)), source="digits")
    run("clip", lambda out, n: clip.train_clip(out, split["train"], split["test"], n))
    if "clip_2" in builder.plan:
        second = {"width": models.TEXT_WIDTH_2, "pad_token": "!"}
        run("clip_2", lambda out, n: clip.train_clip(out, split["train"], split["test"], n, **second))
    run("autoencoder", lambda out, n: autoencoder.train_autoencoder(out, split["train"], split["test"], n))
    vae, kind = root / "autoencoder", args.prediction_type
    run(
        "teacher",
        lambda out, n: teacher.train_teacher(out, builder.clips, vae, split["train"], kind, n),
        prediction_type=kind,
    )
    run(
        "feature_network",
        lambda out, n: vision.train_feature_network(out, root / "clip", split["train"], split["test"], n),
    )
    run("evaluator", lambda out, n: vision.train_evaluator(out, split["train"], split["test"], n))
    run("preview", lambda out, _: teacher.preview_teacher(out, root / "teacher", root / "evaluator", split["test"]))
    return builder.manifest


def build_captioned(args: argparse.Namespace) -> Manifest:
    """Build or find the world of the folder `args.train_data_dir`.

    Raises:
        ValueError: the folder cannot be used.
        GateMissedError: a stage has missed its gate.
    """
    root: Path = args.output_dir
    resolution = args.resolution or models.IMAGE_SIZE
    # Read before the output folder is touched: a bad data set is refused without leaving anything behind.
    train, test = data.load_image_folder(args.train_data_dir, args.seed, resolution)
    sizes = plan.make_plan(resolution, len(train))
    builder = Builder(args, open_manifest(args), captioned_stages(args.layout, sizes.iterations))
    split = builder.split
    source = data.fingerprint_folder(args.train_data_dir)
    builder.run("data", lambda out, _: write_data(out, train, test), source=source, resolution=resolution)

    def halves() -> tuple[Split, Split]:
        return split["train"], split["test"]

    builder.train("autoencoder", lambda out, c: captioned_autoencoder.train_autoencoder(out, *halves(), sizes, c))
    builder.train("clip", lambda out, c: captioned_clip.train_clip(out, *halves(), sizes, c))
    if "clip_2" in builder.plan:
        second = {"width": sizes.text_width * 3 // 2, "pad_token": "!"}
        builder.train("clip_2", lambda out, c: captioned_clip.train_clip(out, *halves(), sizes, c, **second))
    builder.train("evaluator", lambda out, c: captioned_vision.train_evaluator(out, *halves(), sizes, c))
    builder.train(
        "feature_network",
        lambda out, c: captioned_vision.train_feature_network(out, root / "clip", *halves(), sizes, c),
    )
    vae, evaluator, kind = root / "autoencoder", root / "evaluator", args.prediction_type
    builder.train(
        "teacher",
        lambda out, c: captioned_teacher.train_teacher(
            out, builder.clips, vae, evaluator, *halves(), sizes, c, prediction_type=kind
        ),
        prediction_type=kind,
    )
    builder.run(
        "preview", lambda out, _: captioned_teacher.preview_teacher(out, root / "teacher", evaluator, *halves())
    )
    return builder.manifest


def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process."""
    args = parse_args(argv)
    for library in (diffusers, transformers):
        # Progress bars and messages for each loaded or saved file would hide those of the training.
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    try:
        build(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Build the tiny world: real data and small real models in the standard layouts, on a CPU, in minutes.

    python -m examples.tiny.build --output_dir build/tiny

leaves in the output folder

    data/             image folder with captions, train and test       datasets.load_dataset("imagefolder", ...)
    clip/             tokenizer and CLIP                                CLIPModel, CLIPTextModelWithProjection
    autoencoder/      the KL autoencoder                                AutoencoderKL
    teacher/          the whole pipeline                                StableDiffusion(XL)Pipeline
    feature_network/  F of the discriminator                            Dinov2Model
    evaluator/        classifier and features for the Frechet distance  Dinov2ForImageClassification, or for
                      --train_data_dir ResNetForImageClassification
    preview/          a grid of the teacher's pictures
    build.json        arguments, hashes, measured quality, seconds

With `--train_data_dir` the networks are sized by the images, and every stage is measured on held-out images. A stage
that misses its gate is trained on for some rounds; if that does not do, the build ends and says what to do. It can be
killed at any time and goes on when it is called again.

`--layout sdxl` adds clip_2/, the teacher's second text encoder, and trains an autoencoder of its own: a student and
a teacher of different layouts are of different latent spaces. All else is the same in both, to the byte.

Called again, it keeps what is whole and unchanged and builds the rest.
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

CHECKPOINTS = ".checkpoints"  # in the output folder: trainings that are not finished
COMMON = (loop, models, images, data, splits)
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


def captioned_stages(layout: str, lengths: dict[str, int]) -> dict[str, tuple]:
    """The same for a captioned folder; the evaluator comes before the teacher, which it judges."""
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
    """The seed of a stage's random numbers: its own, so that it can be built again alone with the same result."""
    key = f"{name} {layout} {seed}" if layout != "sd" and name in OWN else f"{name} {seed}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big")


def hash_code(modules: Iterable[ModuleType]) -> str:
    """SHA-256 of the modules' source: whoever edits a stage gets it built anew."""
    return hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in modules)).hexdigest()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=command_name("examples.tiny.build"),
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
    parser.add_argument(
        "--resolution",
        type=int,
        choices=plan.RESOLUTIONS,
        help="Pixels a side, for --train_data_dir. Default: 32. The digits have 32.",
    )
    parser.add_argument(
        "--max_rounds",
        type=int,
        default=3,
        help="How often a stage of --train_data_dir may be trained, the first time in full and then in half its "
        "iterations, until it reaches its gate. Default: 3.",
    )
    parser.add_argument(
        "--gates",
        choices=("enforce", "report"),
        default="enforce",
        help="Whether a gate missed after the last round ends the build, or is only reported. Default: enforce.",
    )
    parser.add_argument(
        "--accept_older_code",
        action="store_true",
        help="Keep and continue what was built by other versions of this code, which is otherwise built anew.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything random. Default: 0.")
    parser.add_argument(
        "--iterations_scale",
        type=float,
        default=1.0,
        help="Multiplies the iterations of every stage: 0.01 shows in seconds that all runs, 3 trains longer. "
        "Default: 1.0, on two cores about four minutes for the digits and twenty for 1,500 images of 32 pixels.",
    )
    args = parser.parse_args(argv)
    if args.resolution is not None and args.train_data_dir is None:
        parser.error(f"--resolution {args.resolution} is for --train_data_dir; the digits have 32 pixels")
    if args.max_rounds < 1:
        parser.error(f"--max_rounds must be 1 or more, got {args.max_rounds}")
    if not 0 < args.iterations_scale < float("inf"):
        parser.error(f"--iterations_scale must be above 0, got {args.iterations_scale}")
    if args.seed < 0:
        parser.error(f"--seed must be 0 or more, got {args.seed}")
    if args.train_data_dir is not None:
        source, target = args.train_data_dir.resolve(), args.output_dir.resolve()
        if source == target or target in source.parents:
            parser.error(f"--train_data_dir {args.train_data_dir} lies in --output_dir, which is written anew")
    return args


class Builder:
    """Builds or finds the stages of one world in their order.

    Args:
        args: the command line.
        manifest: what has been built.
        plan: each stage's modules, needs and iterations, as `stages` or `captioned_stages` has them.
    """

    def __init__(self, args: argparse.Namespace, manifest: Manifest, plan: dict[str, tuple]):
        self.args, self.manifest, self.plan = args, manifest, plan
        # Now, not stage by stage: what runs is the code as it was imported, even if a file is edited meanwhile.
        self.code = {name: hash_code(modules) for name, (modules, _, _) in plan.items()}
        self.split: dict[str, Split] = {}

    @property
    def clips(self) -> list[Path]:
        """The folders of the text encoders."""
        return [self.args.output_dir / name for name in ("clip", "clip_2") if name in self.plan]

    def run(self, name: str, function: Callable[..., dict], **extra) -> None:
        """Have the stage `name`: as found, or by `function(folder, iterations)`; `extra` decides its result too."""
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
        """Have the stage `name` of a captioned folder: as found, or by `function(folder, course)`."""

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
        """The iterations after `--iterations_scale`."""
        return max(1, round(iterations * self.args.iterations_scale)) if iterations else 0


def write_data(out: Path, train: list[data.Example], test: list[data.Example]) -> dict:
    """Write both halves in `out`. Returns their figures."""
    data.write_split(out / "train", train)
    data.write_split(out / "test", test)
    captions = {example.text for example in train + test}
    labels = {example.label for example in train + test}
    return {"train": len(train), "test": len(test), "captions": len(captions), "labels": len(labels)}


def build(args: argparse.Namespace) -> Manifest:
    """Build or find every stage in `args.output_dir`. Returns the manifest.

    Raises:
        ValueError: the data or the output folder cannot be used, and nothing has been trained; or a stage has missed
            its gate.
    """
    if args.train_data_dir:
        return build_captioned(args)
    return build_digits(args)


def open_manifest(args: argparse.Namespace) -> Manifest:
    """The records in the output folder, under the arguments of this call."""
    arguments = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "output_dir"}
    return Manifest.open(args.output_dir, arguments)


def build_digits(args: argparse.Namespace) -> Manifest:
    """Build or find the digits' world."""
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

"""Builds the feature networks for Table 1a that the tiny world does not have.

    python -m examples.tiny.stand_ins --tiny_dir build/tiny --output_dir build/ablations/stand_ins

`clip/` is a CLIP whose vision tower has the depth and width of the world's F. It represents the objective of CLIP ViT-L
but not its size. `untrained/` is F's architecture with random weights. There is no network with DINOv1's objective and
no larger one with DINOv2's, because digits of 32 pixels are too simple for such a comparison. The evaluator is not used
as a feature network, because it also measures the students.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Dinov2Config, Dinov2Model

from evaluation.command_line import make_parser
from evaluation.errors import EvaluationError
from evaluation.tiny.judge import check_tiny_dir
from evaluation.tiny.split import Split, read_split
from examples.tiny.clip import BATCH_SIZE, ITERATIONS, LEARNING_RATE, contrastive_loss, tokenize
from examples.tiny.images import make_processor, normalize, warp
from examples.tiny.loop import draw, fit
from examples.tiny.models import make_clip, make_tokenizer
from training.command import run_command


def train_clip(out: Path, train: Split, config: Dinov2Config, iterations: int) -> None:
    """Train a CLIP with the depth and width of `config` on images and captions, and save it to `out`."""
    captions = sorted(set(train.captions))
    tokenizer = make_tokenizer(captions)
    clip = make_clip(tokenizer, config.hidden_size, config.num_hidden_layers)
    tokens = tokenize(tokenizer, captions)
    caption_ids = torch.tensor([captions.index(caption) for caption in train.captions])

    def loss_of_batch() -> torch.Tensor:
        rows = draw(len(caption_ids), BATCH_SIZE)
        images = normalize(warp(train.pixels[rows], degrees=5, scale=0.1, shift_px=2))
        logits = clip(input_ids=tokens[caption_ids[rows]], pixel_values=images).logits_per_image
        return contrastive_loss(logits, caption_ids[rows])

    fit([clip], loss_of_batch, iterations=iterations, learning_rate=LEARNING_RATE, title="CLIP of F's size")
    clip.save_pretrained(out)


def build_stand_ins(args: argparse.Namespace) -> None:
    """Build both networks, except those that exist already."""
    check_tiny_dir(args.tiny_dir, "--tiny_dir")
    if args.iterations < 1:
        raise EvaluationError(f"--iterations {args.iterations}: give 1 or more.")
    config = Dinov2Config.from_pretrained(args.tiny_dir / "feature_network")
    for name in ("untrained", "clip"):
        out = args.output_dir / name
        if (out / "preprocessor_config.json").exists():  # written last
            print(f"{name}: found in {out}")
            continue
        torch.manual_seed(args.seed)
        if name == "clip":
            train_clip(out, read_split(args.tiny_dir / "data" / "train"), config, args.iterations)
        else:
            Dinov2Model(config).save_pretrained(out)
        make_processor().save_pretrained(out)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process.

    Raises:
        SystemExit: the command failed; it has the exit status.
    """
    parser = make_parser("examples.tiny.stand_ins", __doc__)
    add = parser.add_argument
    add("--tiny_dir", type=Path, required=True, help="Folder of the tiny world.")
    add("--output_dir", type=Path, required=True, help="Output folder.")
    add("--iterations", type=int, default=ITERATIONS, help="Training iterations of the CLIP (default: %(default)s).")
    add("--seed", type=int, default=0, help="Seed for both networks.")
    run_command(parser, argv, build_stand_ins)


if __name__ == "__main__":
    main()

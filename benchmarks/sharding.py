"""Memory and bytes exchanged by a process of a run over many GPUs, counted: a table.

    python -m benchmarks.sharding --model sdxl --seconds 0.25

Bytes are those of `benchmarks.exchange`. The last two columns are the speed that a process needs of its links for
the exchange to take no longer than the computing of an iteration, `--seconds`, beside which it can run.
"""

import argparse
from collections.abc import Sequence

import torch

from benchmarks.architectures import ARCHITECTURES
from benchmarks.exchange import Layout, Networks, layouts
from benchmarks.fake import make_discriminator, make_networks
from benchmarks.full_size import training_options

GIB, GB = 2**30, 1e9
TRAINED = {"all weights": "C", "LoRA of rank 64": "C+LoRA"}  # recipes by what they train
HALF = 2  # bytes of a number in bfloat16


def networks_of(model: str, recipe: str, use_ema: bool) -> Networks:
    """The networks of a recipe in bf16."""
    options = training_options(model, recipe, 512, 1, "world", ())
    with torch.device("meta"):
        found = make_networks(ARCHITECTURES[model], options)
        discriminator = make_discriminator(ARCHITECTURES[model], options, found)
        heads = 0 if discriminator is None else sum(p.numel() for p in discriminator.heads.parameters())
    teacher = None if found.teacher is found.student else found.teacher
    return Networks(found.student, teacher, heads, HALF, use_ema)


def row(networks: Networks, layout: Layout, seconds: float) -> list[str]:
    """The cells of a layout."""
    held, (inner, outer) = networks.held(layout), networks.exchanged(layout).sent(layout)
    speeds = [f"{sent / seconds / GB:.1f}" if sent else "-" for sent in (inner, outer)]
    return [
        str(layout.processes), layout.name, f"{(held.total - held.gathered) / GIB:.2f}", f"{held.gathered / GIB:.2f}",
        f"{inner / GB:.2f}", f"{outer / GB:.2f}", *speeds,
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=ARCHITECTURES, default="sdxl")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 8, 64, 512], help="GPUs, one process each.")
    parser.add_argument("--per_node", type=int, default=8, help="GPUs of a node, for hybrid sharding.")
    parser.add_argument("--seconds", type=float, default=0.25, help="Computing time of an iteration.")
    parser.add_argument("--use_ema", action="store_true", help="With a moving average.")
    args = parser.parse_args(argv)
    titles = ["trains", "GPUs", "layout", "GiB of state", "GiB gathered", "GB within a copy", "GB between copies",
              "GB/s within", "GB/s between"]  # fmt: skip
    print("| " + " | ".join(titles) + " |\n|---|--:|---|" + "--:|" * 6)
    for title, recipe in TRAINED.items():
        networks = networks_of(args.model, recipe, args.use_ema)
        for processes in args.processes:
            for layout in layouts(processes, args.per_node):
                print(f"| {title} | " + " | ".join(row(networks, layout, args.seconds)) + " |")


if __name__ == "__main__":
    main()

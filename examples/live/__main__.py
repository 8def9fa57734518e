"""Type, and the picture follows: `python -m examples.live [MODEL]`, then open the address it prints.

Wants gradio, which nothing else here does: pip install -r requirements-live.txt
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.live.page import Drawer, make_page
from pipelines import ADDPipeline

DEFAULT_MODEL = "build/demo/student"


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Runs until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m examples.live", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("model", nargs="?", default=DEFAULT_MODEL, help=f"A student's folder or Hub repo. Default: {DEFAULT_MODEL}.")
    add("--host", default="127.0.0.1", help="Address to listen at. Only this machine, by default.")
    add("--port", type=int, default=7860, help="Port to listen at; 0 takes a free one.")
    add("--compile", action="store_true", help="Slow first picture, faster ones from then on.")
    add("--tiny_vae", default=None, help="An AutoencoderTiny, for faster and slightly coarser pictures.")
    args = parser.parse_args(argv)
    if args.model == DEFAULT_MODEL and not Path(args.model).is_dir():
        parser.error(f"{DEFAULT_MODEL} is not there yet. Make it with `make demo`, or name a model.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = ADDPipeline.from_pretrained(args.model, dtype=torch.float16 if device == "cuda" else torch.float32)
    pipe.to(device).optimize(compile=args.compile, tiny_vae=args.tiny_vae)
    page = make_page(Drawer(pipe))
    page.launch(server_name=args.host, server_port=args.port or None, share=False)


if __name__ == "__main__":
    main()

"""Draw while you type: `python -m examples.live [MODEL]`, then open the address that it prints.

MODEL is a student's folder or Hub repo. For an adapter alone (`--use_lora`), `--base` names the model that it was
trained on; a folder that train_add.py wrote says so itself where that model is on the Hub.
"""

from collections.abc import Sequence

from evaluation.command_line import OneLineParser, make_parser
from evaluation.errors import require_packages
from training.command import run_command
from training.errors import OptionError

DEFAULT_MODEL = "build/demo/student"


def make_live_parser() -> OneLineParser:
    """The command line."""
    parser = make_parser("examples.live", __doc__)
    add = parser.add_argument
    add("model", nargs="?", default=DEFAULT_MODEL, help=f"A student's folder or Hub repo. Default: {DEFAULT_MODEL}.")
    add("--base", default=None, help="Folder or Hub repo of the model that MODEL, an adapter, was trained on.")
    add("--host", default="127.0.0.1", help="Address to listen on. Only this machine, by default.")
    add("--port", type=int, default=7860, help="Port to listen on; 0 takes a free one.")
    add("--compile", action="store_true", help="Compile the networks: the first picture is slow, later ones faster.")
    add("--tiny_vae", default=None, help="Folder or Hub repo of an AutoencoderTiny, for faster and slightly coarser "
        "pictures.")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command until it is interrupted.

    Raises:
        SystemExit: it failed, with the exit status.
    """

    def run(args) -> None:
        if not 0 <= args.port < 2**16:
            raise OptionError(f"--port {args.port}: give a port from 0 to 65535; 0 takes a free one.")
        require_packages("gradio")
        from examples.live.page import Drawer, make_page
        from examples.live.student import load_student

        advice = "Make it with `make demo`, or name a model." if args.model == DEFAULT_MODEL else ""
        pipe = load_student(args.model, args.base, args.tiny_vae, args.compile, advice)
        page = make_page(Drawer(pipe))
        try:
            page.launch(server_name=args.host, server_port=args.port or None, share=False)
        except OSError as error:
            reason = " ".join(str(error).split())
            raise OptionError(
                f"--host {args.host} --port {args.port}: {reason} `--port 0` takes a free one."
            ) from error

    run_command(make_live_parser(), argv, run)


if __name__ == "__main__":
    main()

"""The installed commands: `add-publish`, `add-single-file`, `add-evaluate`, `add-preference` and `add-live`.

In a checkout, the folders import each other by their top-level names, such as `from training.errors import UserError`,
and training is started by `accelerate launch train_add.py`. When installed, they are sub-packages of `add_diffusers`
without top-level names. Each command therefore inserts the folder that contains them at the front of `sys.path`, before
the current directory and other places that may have a module called `training`. This only happens in the command's own
process; a program that imports `add_diffusers` keeps its `sys.path`.
"""

import sys
from importlib import import_module
from typing import Any

import add_diffusers


def publish() -> Any:
    """Publish a finished run on the Hub, as `python -m training.publish`."""
    return _run("training.publish")


def single_file() -> Any:
    """Export a student as one file, as `python -m training.single_file`."""
    return _run("training.single_file")


def evaluate() -> Any:
    """Generate, measure and compare, as `python -m evaluation`."""
    return _run("evaluation.__main__")


def preference() -> Any:
    """Run a preference study, as `python -m evaluation.preference`."""
    return _run("evaluation.preference.__main__")


def live() -> Any:
    """Start the web page that updates the image as the prompt is typed, as `python -m examples.live`."""
    return _run("examples.live.__main__")


def _run(module: str) -> Any:
    """Call `module.main()`, which reads `sys.argv`. Returns the exit status; None means success."""
    # The last entry is the only one of an installed package, and the one added for the folders in a checkout.
    sys.path.insert(0, list(add_diffusers.__path__)[-1])
    return import_module(module).main()

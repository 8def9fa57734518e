"""The installed commands: `add-publish`, `add-single-file`, `add-evaluate`, `add-preference` and `add-live`.

In a checkout the folders import one another by their own names, `from training.errors import UserError`, and training
starts there as `accelerate launch train_add.py`. Installed, they are sub-packages of `add_diffusers`, and no such
top-level name exists. Each command therefore puts the folder that holds them first on `sys.path`, and takes the current
directory and anything else that has a module called `training` second. It does so in its own process alone: a program
that imports `add_diffusers` keeps its `sys.path`.
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
    """Draw, measure and compare, as `python -m evaluation`."""
    return _run("evaluation.__main__")


def preference() -> Any:
    """Let people or a model choose between images, as `python -m evaluation.preference`."""
    return _run("evaluation.preference.__main__")


def live() -> Any:
    """Draw while one types, as `python -m examples.live`."""
    return _run("examples.live.__main__")


def _run(module: str) -> Any:
    """Call `module.main()`, which reads `sys.argv`. Returns the exit status, where None is success."""
    # The last entry: of an installed package its only one, and in a checkout the one that was added for the folders.
    sys.path.insert(0, list(add_diffusers.__path__)[-1])
    return import_module(module).main()

"""Errors of the evaluation commands, and the check for their optional packages."""

from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import constants

from training.errors import UserError

# The command that installs the packages that only the evaluation and the demo need, in a checkout.
INSTALL_EXTRAS = "pip install '.[evaluation]'"


class EvaluationError(UserError, ValueError):
    """A command cannot be carried out. The message names the flag or file, its value and the fix."""

    status = 2


class MissingPackageError(EvaluationError):
    """A Python package that this command needs is not installed."""


def require_packages(*modules: str, install: str = INSTALL_EXTRAS) -> None:
    """Check that optional packages are installed, before any work is done.

    Args:
        modules: names of modules, such as `sklearn`.
        install: command that installs them.

    Raises:
        MissingPackageError: a module is missing; the message names all missing modules and how to install them.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        names = ", ".join(missing)
        raise MissingPackageError(f"this command needs {names}, which is not installed. Install it with `{install}`.")


def explain_unavailable(model: str, error: Exception) -> str:
    """The reason why `model`, a Hub id or folder, cannot be loaded, to follow the flag and its value in a message.

    The messages of the libraries are misleading when offline: they only mention a missing `model_index.json`.
    """
    if Path(model).is_dir():
        return "the folder cannot be loaded: " + " ".join(str(error).split())
    if Path(model).is_absolute() or model.count("/") != 1 or model.startswith("."):
        return "there is no such folder, and it is not a Hub id"
    if constants.HF_HUB_OFFLINE:
        return (
            "there is no such folder, and HF_HUB_OFFLINE is set but the local cache does not contain a Hub repo of "
            "that name. Unset HF_HUB_OFFLINE to download it"
        )
    return "there is no such folder, and the Hub has no such repo, does not grant access to it, or cannot be reached"

"""The error of the evaluation commands, and the check for packages that only they need."""

from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import constants

from training.errors import UserError

# How the packages that only the evaluation and the demo need are installed, in a checkout. Said here and nowhere else.
INSTALL_EXTRAS = "pip install '.[evaluation]'"


class EvaluationError(UserError, ValueError):
    """Something that was asked for cannot be done: the message names the flag or file, what it got and the fix."""

    status = 2


class MissingPackageError(EvaluationError):
    """A Python package that this command needs is not installed."""


def require_packages(*modules: str, install: str = INSTALL_EXTRAS) -> None:
    """Check that optional packages can be imported, before any work is done.

    Args:
        modules: names that are imported, such as `sklearn`.
        install: the command that installs them.

    Raises:
        MissingPackageError: names every module that is missing and how to install it.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        names = ", ".join(missing)
        raise MissingPackageError(f"this command needs {names}, which is not installed. Install it with `{install}`.")


def explain_unavailable(model: str, error: Exception) -> str:
    """Why `model`, a Hub id or folder, could not be loaded: the rest of a sentence that begins with flag and value.

    The libraries' own messages speak of a missing `model_index.json` where the network is switched off.
    """
    if Path(model).is_dir():
        return "the folder cannot be loaded: " + " ".join(str(error).split())
    if Path(model).is_absolute() or model.count("/") != 1 or model.startswith("."):
        return "there is no such folder, and it is no Hub id either"
    if constants.HF_HUB_OFFLINE:
        return (
            "there is no such folder, and HF_HUB_OFFLINE is set while the local cache does not hold a Hub repo of that "
            "name. Unset HF_HUB_OFFLINE to download it"
        )
    return "there is no such folder, and the Hub has no such repo, does not grant access to it, or cannot be reached"

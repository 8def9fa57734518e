"""The error of the evaluation commands, and the check for packages that only they need."""

from importlib.util import find_spec

from training.errors import UserError

# How the packages that only the evaluation, the demo and the tests need are installed. Said here and nowhere else.
INSTALL_EXTRAS = "pip install -r requirements-dev.txt"


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

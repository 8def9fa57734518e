"""One-line errors for models that cannot be loaded, which name the flag and the fix."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import ConfigMixin
from huggingface_hub import constants
from safetensors import SafetensorError

from discriminator.pretrained import IncompleteModelError
from training.errors import OptionError, UserError

LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)
LONGEST_REASON = 300  # characters of a library's own message


def load_config(kind: type[ConfigMixin], pretrained_model_name_or_path: str, **where: Any) -> dict[str, Any]:
    """`kind.load_config`, which returns a tuple only with flags that nothing here uses."""
    return cast(dict[str, Any], kind.load_config(pretrained_model_name_or_path, **where))


@contextmanager
def loading(flag: str, name: str, needed: str) -> Iterator[None]:
    """Context manager for loading a model or parts of it, which turns errors of libraries into an `OptionError`.

    Args:
        flag: flag that names the model, without dashes.
        name: Hub id or folder of the model.
        needed: kind of model that is needed, with its article, such as "a CLIP with projection".

    Raises:
        OptionError: the model cannot be reached, is of another kind, or lacks weights; the message is one line.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except IncompleteModelError as error:
        raise OptionError(f"--{flag} got {name!r}: {error}") from error
    except LOADING_ERRORS as error:
        raise OptionError(
            f"--{flag} got {name!r}: {_reason(name, error)}; give the Hub id or folder of {needed}"
        ) from error


def _reason(name: str, error: Exception) -> str:
    message = " ".join(str(error).split())
    if "trust_remote_code" in message:
        return "it requires custom code, and code from a model's repo is never run here"
    if not Path(name).is_dir():
        if constants.HF_HUB_OFFLINE:
            return "there is no such folder, and with HF_HUB_OFFLINE=1 only models in the local Hub cache can be loaded"
        return f"there is no such folder, and it cannot be loaded from the Hub ({_shortened(message)})"
    return f"it cannot be loaded ({type(error).__name__}: {_shortened(message)})"


def _shortened(message: str) -> str:
    return message if len(message) <= LONGEST_REASON else message[: LONGEST_REASON - 3] + "..."

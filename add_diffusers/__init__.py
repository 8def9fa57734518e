"""Pipelines for students of Adversarial Diffusion Distillation (ADD), which generate an image in one to four steps.

    from add_diffusers import ADDPipeline

    pipe = ADDPipeline.from_pretrained("my-student")
    image = pipe("a red fox in the snow").images[0]

The folders of a checkout (`pipelines`, `training`, `evaluation`, ...) are installed as sub-packages of this one. As
top-level modules, their common names could collide with other packages.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines import ADDPipeline, ADDSD3Pipeline, ADDXLPipeline

__all__ = ["ADDPipeline", "ADDSD3Pipeline", "ADDXLPipeline"]

# In a checkout, with `pip install -e .` or without installation, the folders are beside this one instead of in it.
# setuptools' editable mode does not map sub-packages, so their location is added to the search path here.
if not (Path(__file__).parent / "pipelines").is_dir():
    __path__.append(str(Path(__file__).parents[1]))


def __getattr__(name: str) -> Any:
    """Import a pipeline on first use, because importing diffusers and torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.pipelines"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

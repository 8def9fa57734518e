"""Small random worlds of both families for all pipeline tests: stock components, published by our pipelines."""

import logging
import warnings

import pytest

from examples.tiny.models import make_scheduler
from pipelines import DEFAULT_STUDENT_TIMESTEPS, student_scheduler
from tests.pipelines.families import FAMILIES


@pytest.fixture(scope="session", params=FAMILIES)
def family(request):
    """Stable Diffusion, then SDXL."""
    return FAMILIES[request.param]


@pytest.fixture(scope="session")
def components(family) -> dict:
    """Every component but the scheduler; images are 32x32, latents (B, 4, 8, 8)."""
    return family.components()


@pytest.fixture(scope="session")
def make_pipeline(family, components):
    """make_pipeline("ours" or a kind of stock, prediction_type=..., student_timesteps=..., **other components)."""

    def make(
        kind="ours",
        prediction_type="epsilon",
        student_timesteps=DEFAULT_STUDENT_TIMESTEPS,
        scheduler=None,
        **other,
    ):
        scheduler = scheduler or student_scheduler(make_scheduler().config, prediction_type, student_timesteps)
        cls = {"ours": family.ours, **family.stock}[kind]
        pipe = cls(**components | other, scheduler=scheduler, **family.options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture(scope="session")
def repo(family, make_pipeline, tmp_path_factory) -> str:
    """A published epsilon student with the default timesteps."""
    folder = tmp_path_factory.mktemp("published") / "student"
    make_pipeline(**family.tokenizers()).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def complaints():
    """Whatever diffusers, transformers or Python's `warnings` complain about during the test."""

    class Collect(logging.Handler):
        def emit(self, record):
            found.append(record.getMessage())

    found, handler = [], Collect(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: found.append(str(message))
        for logger in loggers:
            logger.addHandler(handler)
        yield found
        for logger in loggers:
            logger.removeHandler(handler)

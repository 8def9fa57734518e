"""One small random Stable Diffusion world for all pipeline tests: stock components, published by ADDPipeline."""

import logging
import warnings

import pytest
import torch
from transformers import CLIPTextModel

from examples.tiny.models import make_clip, make_scheduler, make_tokenizer, make_unet, make_vae
from pipelines import DEFAULT_STUDENT_TIMESTEPS, ADDPipeline, student_scheduler

CAPTIONS = ["a handwritten seven", "an eight, small and slanted"]


@pytest.fixture(scope="session")
def components() -> dict:
    """Every component but the scheduler; images are 32x32, latents (B, 4, 8, 8)."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(CAPTIONS)
    models = {
        "vae": make_vae((8, 8, 8)),
        "text_encoder": CLIPTextModel(make_clip(tokenizer, width=32).config.text_config),
        "unet": make_unet((16, 32), cross_attention_dim=32),
    }
    for model in models.values():
        model.eval().requires_grad_(False)
    return models | {"tokenizer": tokenizer, "safety_checker": None, "feature_extractor": None}


@pytest.fixture(scope="session")
def make_pipeline(components):
    """make_pipeline(stock_class=ADDPipeline, prediction_type=..., student_timesteps=..., **other components)."""

    def make(
        cls=ADDPipeline, prediction_type="epsilon", student_timesteps=DEFAULT_STUDENT_TIMESTEPS, scheduler=None, **other
    ):
        scheduler = scheduler or student_scheduler(make_scheduler().config, prediction_type, student_timesteps)
        pipe = cls(**components | other, scheduler=scheduler, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture(scope="session")
def repo(make_pipeline, tmp_path_factory) -> str:
    """A published epsilon student with the default timesteps."""
    folder = tmp_path_factory.mktemp("published") / "student"
    # A tokenizer that has been used remembers its padding, and would be saved with it.
    make_pipeline(tokenizer=make_tokenizer(CAPTIONS)).save_pretrained(folder)
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

"""Each warning appears once in a process, for the calls that it is about and for no others."""

import pytest
import torch

from examples.tiny.models import make_scheduler
from tests.pipelines.families import SDXL


@pytest.fixture(autouse=True)
def _nothing_warned_yet(monkeypatch):
    monkeypatch.setattr("pipelines.call_warnings._warned", set())


def ours(complaints: list[str]) -> list[str]:
    """Without what diffusers says whenever SDXL's autoencoder is cast, here for the image that it encodes."""
    return [text for text in complaints if "should be kept in float32: []" not in text]


def sample(pipe, **arguments) -> None:
    pipe("a seven", output_type="latent", **arguments)


def test_guidance(make_pipeline, complaints):
    """guidance_scale above 1 warns once, with its value; a negative prompt has its effect then."""
    pipe = make_pipeline()
    for _ in range(2):
        sample(pipe, guidance_scale=7.5, negative_prompt="an eight")
    sample(make_pipeline(), guidance_scale=3.0)
    (text,) = ours(complaints)
    assert text.startswith("guidance_scale=7.5: an ADD student is trained without guidance")


@pytest.mark.parametrize("name", ["negative_prompt", "negative_prompt_2", "negative_prompt_embeds"])
def test_negative_prompt_without_guidance(family, make_pipeline, complaints, name):
    """It is ignored, which is said once."""
    if name == "negative_prompt_2" and family is not SDXL:
        pytest.skip("Stable Diffusion has one text encoder")
    value = "an eight"
    more = {}
    if name == "negative_prompt_embeds":
        embeds = family.embeds(1)
        value = embeds["prompt_embeds"]
        if family is SDXL:
            more["negative_pooled_prompt_embeds"] = embeds["pooled_prompt_embeds"]
    for _ in range(2):
        sample(make_pipeline(), **{name: value}, **more)
    (text,) = ours(complaints)
    assert text.startswith("The negative prompt is ignored with guidance_scale=0.0.")


def test_a_model_that_was_never_distilled(make_pipeline, complaints):
    """Its scheduler's config has no student timesteps; the other kinds of call are not warned of again."""
    pipe = make_pipeline(scheduler=make_scheduler())
    sample(pipe)
    sample(pipe, image=torch.rand(1, 3, 32, 32), strength=1.0)
    (text,) = ours(complaints)
    assert text.startswith("The config of DDIMScheduler has no _student_timesteps, so this model does not seem to be")


def test_an_ordinary_call_warns_of_nothing(make_pipeline, complaints):
    """Neither from text nor from an image, and guidance_scale 1 is no guidance."""
    pipe = make_pipeline()
    sample(pipe)
    sample(pipe, guidance_scale=1.0)
    sample(pipe, image=torch.rand(1, 3, 32, 32))
    assert ours(complaints) == []


def test_diffusers_verbosity_applies(make_pipeline, monkeypatch, capfd):
    """`diffusers.logging.set_verbosity_error()` silences it."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        sample(make_pipeline(), guidance_scale=7.5)
    finally:
        logging.set_verbosity(before)
    assert "guidance" not in capfd.readouterr().err

"""Sampling: images depend on their own seed only, and latency is a median without the warm-up."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline

from evaluation import sample, seconds_per_image
from evaluation.generation import sampling
from examples.tiny.models import make_clip, make_tokenizer, make_unet, make_vae

PROMPTS = ["a one", "a two", "a three", "a one", "a two"]


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    tokenizer = make_tokenizer(PROMPTS)
    pipeline = StableDiffusionPipeline(
        vae=make_vae((8, 8, 8)),
        text_encoder=make_clip(tokenizer, width=32, layers=1).text_model,
        tokenizer=tokenizer,
        unet=make_unet((16, 32), cross_attention_dim=32),
        scheduler=EulerAncestralDiscreteScheduler(timestep_spacing="trailing", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_an_image_depends_on_its_own_seed_only(pipeline):
    """Batches of 2 and of 5 agree, with a scheduler that draws noise between steps; equal seed and prompt repeat."""
    seeds = [1, 2, 3, 1, 5]
    settings = {"num_inference_steps": 2, "guidance_scale": 0.0}
    pairs = list(sample(pipeline, PROMPTS, seeds, batch_size=2, **settings))
    together = torch.cat(list(sample(pipeline, PROMPTS, seeds, batch_size=5, **settings)))
    assert [len(pair) for pair in pairs] == [2, 2, 1]
    assert (torch.cat(pairs) - together).abs().max() <= 1 / 255 + 1e-6  # one rounding step
    torch.testing.assert_close(together[0], together[3])
    assert (together[1] - together[4]).abs().mean() > 0.01


def test_images_are_those_of_the_pipeline_in_eight_bits(pipeline):
    """As if saved: the pipeline's own image for that seed, on the grid of k / 255."""
    (images,) = sample(pipeline, PROMPTS[:1], [7], num_inference_steps=1)
    own = pipeline(PROMPTS[0], generator=torch.manual_seed(7), output_type="pt", num_inference_steps=1).images
    torch.testing.assert_close(images, own, atol=0.5 / 255 + 1e-6, rtol=0)
    torch.testing.assert_close(images * 255, (images * 255).round(), atol=1e-4, rtol=0)
    assert not torch.equal(images, own)


def test_nan_images_are_refused():
    """A broken model must not end as a wrong figure."""

    def broken(prompts, **kwargs):
        return SimpleNamespace(images=torch.full((len(prompts), 3, 4, 4), float("nan")))

    with pytest.raises(ValueError, match=r"NaN.*num_inference_steps"):
        list(sample(broken, ["a one"], [0], num_inference_steps=1))


def test_latency_is_the_median_after_the_warm_up(monkeypatch):
    """Calls of 50 (warm-up), 3, 1, 9 seconds at batch 1: the median is 3."""
    batches = []

    def fake(prompts, **kwargs):
        batches.append(len(prompts))
        return SimpleNamespace(images=torch.zeros(len(prompts), 3, 4, 4))

    clock = iter([0, 50, 50, 53, 60, 61, 70, 79])
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: next(clock))
    assert seconds_per_image(fake, "a one", repeats=3) == 3
    assert batches == [1, 1, 1, 1]

"""Students in Stable Diffusion 3's layout: the stock pipelines' images at the student's noise levels, bit for bit."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.utils import dynamic_modules_utils

from examples.tiny.models import make_clip, make_flow_scheduler, make_tokenizer
from pipelines import ADDPipeline, ADDSD3Pipeline, ADDXLPipeline, flow_student_scheduler
from tests.support.tiny_world import CAPTIONS, WIDTHS, make_sd3_teacher

STOCK = {
    "text": StableDiffusion3Pipeline,
    "image": StableDiffusion3Img2ImgPipeline,
    "inpaint": StableDiffusion3InpaintPipeline,
}
SIZE = {"height": 32, "width": 32}
PICTURE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(9))
MASK = torch.zeros(1, 1, 32, 32)
MASK[..., :16] = 1
UNEVEN = (99, 499, 999)  # no stock scheduler spaces its steps like this


@pytest.fixture(scope="module")
def components() -> dict:
    torch.manual_seed(0)
    tokenizer = make_tokenizer(CAPTIONS)
    parts = make_sd3_teacher(make_clip(tokenizer, WIDTHS[0]), tokenizer, "flow").components
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return {name: part for name, part in parts.items() if name != "scheduler"}


def make(components, kind="ours", student_timesteps=(249, 499, 749, 999), scheduler=None, **other):
    scheduler = scheduler or flow_student_scheduler(make_flow_scheduler().config, student_timesteps)
    pipe = {"ours": ADDSD3Pipeline, **STOCK}[kind](**components | other, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **kwargs):
    arguments = {"prompt": "a handwritten one", "guidance_scale": 0.0, "output_type": "np", **SIZE} | kwargs
    return pipe(generator=torch.Generator().manual_seed(0), **arguments).images


def visited(pipe, **kwargs) -> list[float]:
    seen = []

    def callback(_, __, t, values):
        seen.append(float(t))
        return values

    draw(pipe, callback_on_step_end=callback, **kwargs)
    return seen


@pytest.mark.parametrize(("steps", "times"), [(1, [1000]), (2, [1000, 750]), (4, [1000, 900, 750, 500])])
def test_number_of_steps_alone_is_enough_for_the_stock_pipeline(components, steps, times):
    """1000 times the shifted noise levels of the student, and ours at the same."""
    for pipe in (make(components, "text"), make(components)):
        assert visited(pipe, num_inference_steps=steps) == pytest.approx(times)
    ours, stock = (draw(make(components, kind), num_inference_steps=steps) for kind in ("ours", "text"))
    np.testing.assert_array_equal(ours, stock)


def test_default_is_one_step(components):
    assert visited(make(components)) == [1000]
    ours = draw(make(components))
    np.testing.assert_array_equal(ours, draw(make(components, "text"), num_inference_steps=1))


@pytest.mark.parametrize(
    ("timesteps", "steps"), [((249, 499, 749, 999), 3), (UNEVEN, 1), (UNEVEN, 2), (UNEVEN, 3), ((999,), 1)]
)
def test_other_timesteps_are_the_stock_pipelines_sigmas(components, timesteps, steps):
    ours = make(components, student_timesteps=timesteps)
    sigmas = ours.sampling_sigmas(steps)
    assert sigmas == [(t + 1) / 1000 for t in ours.sampling_timesteps(steps)]
    assert visited(ours, num_inference_steps=steps) == pytest.approx([3000 * u / (1 + 2 * u) for u in sigmas])
    expected = draw(make(components, "text", student_timesteps=timesteps), sigmas=sigmas)
    np.testing.assert_array_equal(draw(ours, num_inference_steps=steps), expected)
    np.testing.assert_array_equal(draw(ours, timesteps=ours.sampling_timesteps(steps)), expected)


@pytest.mark.parametrize(("kind", "extra"), [("image", {}), ("inpaint", {"mask_image": MASK})])
@pytest.mark.parametrize(
    ("steps", "strength", "left"), [(2, 0.5, 1), (4, 0.8, 3), (2, 0.8, 1), (4, 1.0, 4), (3, 0.67, 2)]
)
def test_image_calls_leave_whole_steps_and_equal_stock(components, kind, extra, steps, strength, left):
    """int(strength * steps) of them, where the stock pipelines would round up; then they draw the same image."""
    ours = make(components)
    arguments = {"image": PICTURE, **extra}
    times = visited(ours, num_inference_steps=steps, strength=strength, **arguments)
    assert times == visited(ours, num_inference_steps=steps)[-left:]
    exact = 1.0 if left == steps else left / steps - 1e-6
    expected = draw(make(components, kind), sigmas=ours.sampling_sigmas(steps), strength=exact, **arguments)
    np.testing.assert_array_equal(draw(ours, num_inference_steps=steps, strength=strength, **arguments), expected)


def test_default_strength_keeps_something_of_the_image(components):
    """0.8: two steps of which one is left. The stock pipeline would start from pure noise."""
    ours = make(components)
    assert visited(ours, image=PICTURE) == [750]
    assert np.abs(draw(ours, image=PICTURE) - draw(ours, image=1 - PICTURE)).max() > 1e-3


def test_latents_are_an_image_too(components):
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    arguments = {"image": latents, "strength": 0.5, "num_inference_steps": 2}
    np.testing.assert_array_equal(draw(make(components), **arguments), draw(make(components, "image"), **arguments))


@pytest.mark.parametrize(
    "extra",
    [
        {"prompt_2": "an eight"},
        {"prompt_3": "an eight"},
        {"clip_skip": 1},
        {"max_sequence_length": 7},
        {"guidance_scale": 3.0, "negative_prompt": "a two", "negative_prompt_3": "a five"},
    ],
    ids=str,
)
def test_argument_is_stocks_and_acts(components, extra):
    extra = {"num_inference_steps": 2, **extra}
    image = draw(make(components), **extra)
    np.testing.assert_array_equal(image, draw(make(components, "text"), **extra))
    assert np.abs(image - draw(make(components), num_inference_steps=2)).max() > 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_stock(components, dtype):
    """Nothing is amplified, so nothing is kept in float32."""
    pipes = [make(components, kind) for kind in ("ours", "text")]
    try:
        images = [draw(pipe.to(dtype), num_inference_steps=2) for pipe in pipes]
    finally:
        pipes[0].to(torch.float32)
    np.testing.assert_array_equal(*images)


def test_scheduler_of_the_teacher_draws_the_same(components):
    """`FlowMatchEulerDiscreteScheduler` takes the same steps, given the same sigmas; others are refused."""
    ours = make(components, scheduler=make_flow_scheduler())
    np.testing.assert_allclose(
        draw(ours, num_inference_steps=4), draw(make(components), num_inference_steps=4), atol=1e-5, rtol=0
    )
    assert isinstance(ours.scheduler, FlowMatchEulerDiscreteScheduler)
    ours.scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    with pytest.raises(ValueError, match=r"DPMSolverMultistepScheduler cannot visit .*FlowMapEulerDiscreteScheduler"):
        draw(ours)


@pytest.fixture(scope="module")
def repo(components, tmp_path_factory) -> Path:
    """Published by our pipeline, without T5."""
    folder = tmp_path_factory.mktemp("sd3") / "student"
    none = {"text_encoder_3": None, "tokenizer_3": None}
    tokenizers = {"tokenizer": make_tokenizer(CAPTIONS), "tokenizer_2": make_tokenizer(CAPTIONS, pad_token="!")}
    make(components, **none, **tokenizers).save_pretrained(folder)
    return folder


def test_published_layout_loads_every_way(repo, tmp_path, monkeypatch):
    """Stock, as `ADDPipeline`, and as remote code from its one file; T5 is absent in all of them."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    index = json.loads((repo / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline"
    assert index["scheduler"] == ["diffusers", "FlowMapEulerDiscreteScheduler"]
    assert index["text_encoder_3"] == [None, None]
    stock = DiffusionPipeline.from_pretrained(repo, text_encoder_3=None, tokenizer_3=None)
    remote = DiffusionPipeline.from_pretrained(repo, custom_pipeline=str(repo), trust_remote_code=True)
    loaded = [stock, ADDPipeline.from_pretrained(repo), remote]
    assert [type(pipe).__name__ for pipe in loaded] == ["StableDiffusion3Pipeline", "ADDSD3Pipeline", "ADDSD3Pipeline"]
    assert type(loaded[1]) is ADDSD3Pipeline
    assert loaded[1].student_timesteps == (249, 499, 749, 999)
    for pipe in loaded:
        pipe.set_progress_bar_config(disable=True)
    images = [draw(pipe, num_inference_steps=2) for pipe in loaded]
    for image in images[1:]:
        np.testing.assert_allclose(image, images[0], atol=1e-5, rtol=0)
    half = ADDPipeline.from_pretrained(repo, torch_dtype=torch.bfloat16)
    assert {part.dtype for part in (half.transformer, half.vae, half.text_encoder)} == {torch.bfloat16}


def test_classes_of_other_families_refuse_it_and_it_refuses_theirs(repo, tmp_path):
    with pytest.raises(ValueError, match="contains a StableDiffusion3Pipeline, but ADDXLPipeline samples"):
        ADDXLPipeline.from_pretrained(repo)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ValueError, match="contains a StableDiffusionPipeline, but ADDSD3Pipeline samples"):
        ADDSD3Pipeline.from_pretrained(tmp_path)


def test_from_pipe_both_ways(components):
    stock = make(components, "image")
    ours = ADDSD3Pipeline.from_pipe(stock)
    assert ours.student_timesteps == (249, 499, 749, 999)
    assert ours.transformer is stock.transformer
    assert type(StableDiffusion3Pipeline.from_pipe(ours)) is StableDiffusion3Pipeline
    assert type(AutoPipelineForImage2Image.from_pipe(ours)).__name__ == "ADDSD3Pipeline"


def test_optimized_pipeline_draws_the_same_and_keeps_prompts(components):
    pipe = make(components)
    expected = draw(pipe, num_inference_steps=2)
    pipe.optimize(compile=False)
    calls = []
    hook = pipe.text_encoder_3.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        np.testing.assert_allclose(draw(pipe, num_inference_steps=2), expected, atol=1e-5, rtol=0)
    hook.remove()
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [({"num_train_timesteps": 1000}, r"lacks \['shift'\]"), ({"use_dynamic_shifting": True}, "lacks a fixed shift")],
)
def test_scheduler_of_another_kind_is_refused(config, message):
    base = {"num_train_timesteps": 1000, "shift": 3.0} if "use_dynamic_shifting" in config else {}
    with pytest.raises(ValueError, match=message):
        flow_student_scheduler(base | config)


@pytest.mark.parametrize("timesteps", [(249, 998), (999, 999), (-1, 999), ()])
def test_unusable_student_timesteps_are_refused(timesteps):
    with pytest.raises(ValueError, match=r"must be distinct, within 0\.\.999, and include 999"):
        flow_student_scheduler(make_flow_scheduler().config, timesteps)

"""Drawing: resumed to the same images, each seed its own, whatever pipeline; and loading what is asked for."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionLDM3DPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from evaluation.errors import EvaluationError
from evaluation.generation import loading
from evaluation.generation.generate_run import (
    draw_images,
    draw_missing,
    measure_speed,
    reduce_image,
    split_batches,
)
from evaluation.generation.loading import PipelineSpec, load_pipeline
from evaluation.runs.run import Run, plan_shots
from tests.evaluation.run_folders import PROMPTS

CALL = {"num_inference_steps": 1, "guidance_scale": 0.0}


def start(folder, prompts=PROMPTS[:5]):
    return Run.start(folder, {"name": "r", "images_per_prompt": 1, "seed": 3, "call": CALL}, prompts)


@pytest.fixture(scope="module")
def pipeline(world):
    return load_pipeline(PipelineSpec(str(world / "teacher")), "cpu")


class DiesAfter:
    """A pipeline that is killed at a call."""

    def __init__(self, pipeline, calls):
        self.pipeline, self.calls = pipeline, calls

    def __call__(self, *args, **kwargs):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.pipeline(*args, **kwargs)


def test_resumed_is_uninterrupted(tmp_path, pipeline):
    """Killed in its second batch and resumed with other batches: the images of one go, and none is drawn twice."""
    whole, broken = start(tmp_path / "whole"), start(tmp_path / "broken")
    draw_missing(pipeline, whole, batch_size=5, resolution=512, call=CALL)
    with pytest.raises(KeyboardInterrupt):
        draw_missing(DiesAfter(pipeline, 1), broken, batch_size=2, resolution=512, call=CALL)
    assert broken.missing() == broken.shots[2:]
    first = broken.path(broken.shots[0]).stat().st_mtime_ns
    draw_missing(pipeline, broken, batch_size=3, resolution=512, call=CALL)
    assert broken.path(broken.shots[0]).stat().st_mtime_ns == first
    for shot in whole.shots:
        difference = np.asarray(whole.load(shot), int) - np.asarray(broken.load(shot), int)
        assert abs(difference).max() <= 1  # batches of other sizes may round otherwise


def test_an_image_is_the_pipelines_own_for_that_seed(tmp_path, pipeline):
    run = start(tmp_path / "r")
    draw_missing(pipeline, run, batch_size=1, resolution=512, call=CALL)
    own = pipeline(PROMPTS[2], generator=torch.Generator().manual_seed(3 + 2), **CALL).images[0]
    assert run.load(run.shots[2]).tobytes() == own.tobytes()


def test_the_trained_size_is_drawn_and_recorded(tmp_path, world, pipeline):
    """The UNet's own sample size times the VAE's factor, whatever --resolution reduces it to; --height wins over it."""
    factor = pipeline.vae_scale_factor
    trained = StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    trained.set_progress_bar_config(disable=True)
    trained.unet = UNet2DConditionModel.from_config({**pipeline.unet.config, "sample_size": 24})
    run = start(tmp_path / "own")
    draw_missing(trained, run, batch_size=5, resolution=32, call=CALL)
    assert Run.open(run.folder).drawn_size == (24 * factor, 24 * factor)
    assert run.saved_size == (32, 32)
    run = start(tmp_path / "given")
    draw_missing(trained, run, batch_size=5, resolution=512, call=CALL | {"height": 16, "width": 32})
    assert run.drawn_size == run.saved_size == (32, 16)


def test_what_a_pipeline_refuses_is_one_line(pipeline):
    with pytest.raises(EvaluationError, match=r"StableDiffusionPipeline cannot be called with .*17"):
        draw_images(pipeline, plan_shots(["a"], 1, 0), CALL | {"height": 17, "width": 32})


def test_large_images_are_reduced_and_small_ones_left():
    assert reduce_image(Image.new("RGB", (1024, 1024)), 512).size == (512, 512)
    assert reduce_image(Image.new("RGB", (1536, 1024)), 512).size == (768, 512)
    assert reduce_image(Image.new("RGB", (64, 64)), 512).size == (64, 64)


def test_a_batch_of_one_needs_no_list_of_generators():
    """aMUSEd takes one generator only."""

    def single(prompts, generator, **_):
        assert isinstance(generator, torch.Generator)
        return SimpleNamespace(images=[Image.effect_noise((8, 8), 50)])

    assert len(draw_images(single, plan_shots(["a"], 1, 0), {})) == 1


def test_black_images_are_refused():
    """What NaN or a safety checker leaves must not end as a wrong figure."""

    def black(prompts, **_):
        return SimpleNamespace(images=[Image.effect_noise((8, 8), 50), Image.new("RGB", (8, 8))])

    with pytest.raises(EvaluationError, match=r"'b' \(seed 1\).*--no_safety_checker"):
        draw_images(black, plan_shots(["a", "b"], 1, 0), {})


def test_batches_cut_to_the_last_one():
    shots = plan_shots(list("abcde"), 1, 0)
    assert [len(batch) for batch in split_batches(shots, 2)] == [2, 2, 1]


def test_speed_has_its_definitions(pipeline):
    figures = measure_speed(pipeline, PROMPTS[0], 2, "cpu", CALL)
    assert 0 < figures["seconds_per_image"]["value"] < 60
    assert 0.1 < figures["peak_memory_gib"]["value"] < 100
    assert "median of 2" in figures["seconds_per_image"]["definition"]


def test_scheduler_is_replaced_and_keeps_the_pipelines_own_configuration(world, pipeline):
    """The class that is asked for, with the repository's betas and the entries that are given."""
    assert isinstance(pipeline, StableDiffusionPipeline)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    spec = PipelineSpec(
        str(world / "teacher"),
        scheduler="EulerAncestralDiscreteScheduler",
        scheduler_args={"timestep_spacing": "linspace"},
        torch_dtype="bfloat16",
    )
    changed = load_pipeline(spec, "cpu")
    assert isinstance(changed.scheduler, EulerAncestralDiscreteScheduler)
    assert changed.scheduler.config.timestep_spacing == "linspace"
    assert changed.scheduler.config.beta_end == pipeline.scheduler.config.beta_end == 0.012
    assert changed.unet.dtype == changed.vae.dtype == torch.bfloat16


def test_another_unet_takes_the_pipelines_place(tmp_path, world, pipeline):
    """As LCM is published for SDXL: a UNet without the rest."""
    other = UNet2DConditionModel.from_config(pipeline.unet.config)
    other.save_pretrained(tmp_path)
    changed = load_pipeline(PipelineSpec(str(world / "teacher"), unet=str(tmp_path)), "cpu")
    torch.testing.assert_close(changed.unet.state_dict(), other.state_dict())


def test_a_class_that_the_auto_pipeline_does_not_know_loads_as_itself(tmp_path, world, pipeline):
    """LDM3D is not among the text-to-image classes that diffusers lists."""
    parts = {name: part for name, part in pipeline.components.items() if name != "requires_safety_checker"}
    StableDiffusionLDM3DPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path)
    assert isinstance(load_pipeline(PipelineSpec(str(tmp_path)), "cpu"), StableDiffusionLDM3DPipeline)


def test_lora_weights_change_the_image(tmp_path, world, pipeline):
    """As LCM-LoRA is used: weights of an adapter, in the file that diffusers writes."""
    trained = load_pipeline(PipelineSpec(str(world / "teacher")), "cpu")
    trained.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(trained.unet))
    loaded = load_pipeline(PipelineSpec(str(world / "teacher"), lora_weights=str(tmp_path)), "cpu")
    images = [
        draw_images(each, plan_shots(["a handwritten one"], 1, 0), CALL)[0].tobytes()
        for each in (trained, loaded, pipeline)
    ]
    assert images[0] == images[1] != images[2]


@pytest.mark.parametrize("keep", [True, False])
def test_the_safety_checker_goes_only_when_asked(monkeypatch, keep):
    stub = SimpleNamespace(safety_checker=object(), set_progress_bar_config=lambda **_: None)
    stub.to = lambda _: stub
    monkeypatch.setattr(loading.AutoPipelineForText2Image, "from_pretrained", lambda *_, **__: stub)
    assert (load_pipeline(PipelineSpec("a/b", safety_checker=keep), "cpu").safety_checker is not None) == keep


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"model": "/no/such"}, r"--model /no/such: the folder has no model_index\.json"),
        ({"model": "{adapter}"}, "the folder only contains an adapter; give its base as --model"),
        ({"model": "a/b", "scheduler": "DDIM"}, "--scheduler DDIM: give a scheduler class"),
        ({"model": "a/b", "scheduler": "NoSuchScheduler"}, "NoSuchScheduler: diffusers .* no such class"),
    ],
)
def test_wrong_flags_are_refused_before_loading(spec, message, tmp_path):
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    spec = spec | {"model": spec["model"].format(adapter=tmp_path)}
    with pytest.raises(EvaluationError, match=message):
        PipelineSpec(**spec)


def test_a_hub_id_without_network_says_so(monkeypatch):
    """Not that some `model_index.json` is missing."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EvaluationError, match=r"--model no/such: .*HF_HUB_OFFLINE is set") as found:
        load_pipeline(PipelineSpec("no/such"), "cpu")
    assert "model_index.json" not in str(found.value)

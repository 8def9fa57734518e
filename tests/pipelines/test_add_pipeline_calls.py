"""What a call of either family's pipeline accepts, refuses, leaves alone and hands back."""

import copy

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler, PNDMScheduler

from examples.tiny.models import make_scheduler
from tests.pipelines.families import SDXL

TURBO = (699, 799, 899, 999)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture() -> torch.Tensor:
    return torch.rand(1, 3, 32, 32, generator=seeded(9))


def image_arguments(mode: str, strength: float = 0.5) -> dict:
    mask = {"mask_image": (picture()[:, :1] > 0.5).float()} if mode == "inpaint" else {}
    return {} if mode == "text" else {"image": picture(), "strength": strength, **mask}


def test_output_types(make_pipeline):
    """pil, np, pt and latent are one image in four forms; return_dict=False gives a tuple."""
    pipe = make_pipeline()
    out = {kind: pipe("a seven", generator=seeded(), output_type=kind).images for kind in ("pil", "np", "pt", "latent")}
    assert isinstance(out["pil"][0], PIL.Image.Image)
    assert out["pil"][0].size == (32, 32)
    assert out["np"].shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(np.asarray(out["pil"][0]), (out["np"][0] * 255).round().astype("uint8"))
    np.testing.assert_array_equal(out["np"][0], out["pt"][0].permute(1, 2, 0).numpy())
    decoded = pipe.vae.decode(out["latent"] / pipe.vae.config.scaling_factor).sample
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), out["pt"])
    images, *nsfw = pipe("a seven", generator=seeded(), output_type="np", return_dict=False)
    np.testing.assert_array_equal(images, out["np"])
    assert nsfw == [None] * ("safety_checker" in pipe.components)


def test_latents_and_size(make_pipeline):
    """Given latents replace the generator's; height and width set the size."""
    pipe = make_pipeline()
    latents = torch.randn(1, 4, 12, 16, generator=seeded(2))
    given = pipe("a seven", height=48, width=64, latents=latents, output_type="np").images
    drawn = pipe("a seven", height=48, width=64, generator=seeded(2), output_type="np").images
    assert given.shape == (1, 48, 64, 3)
    np.testing.assert_array_equal(given, drawn)


@pytest.mark.parametrize("mode", ["text", "image", "inpaint"])
def test_callback_changes_and_interrupts(make_pipeline, components, mode):
    """A callback sees the student's timesteps, may replace latents, and an interrupt set on OUR pipeline stops both."""
    pipe, passes = make_pipeline(), []
    common = {"prompt": "a seven", "num_inference_steps": 4, "output_type": "latent"}
    common |= image_arguments(mode, strength=1.0)
    hook = components["unet"].register_forward_pre_hook(lambda _, args: passes.append(int(args[1])))

    def stop_after_second(_, step, t, kwargs):
        pipe._interrupt = step == 1
        return {"latents": kwargs["latents"] * 0 + step}

    images = pipe(callback_on_step_end=stop_after_second, **common).images
    hook.remove()
    assert passes == [999, 749]
    assert torch.equal(images, torch.ones(1, 4, 8, 8))
    assert pipe.num_timesteps == 4


@pytest.mark.parametrize("mode", ["text", "image", "inpaint"])
def test_components_are_left_as_they_were(make_pipeline, mode):
    """A call neither replaces nor changes a component, and leaves no attribute that a stock call would not."""
    pipe, other = make_pipeline(), make_pipeline(mode)
    before = pipe.components
    weights = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    configs, attributes = (dict(pipe.config), dict(pipe.scheduler.config)), set(vars(pipe))
    arguments = {"prompt": "a seven", "num_inference_steps": 2, **image_arguments(mode)}
    pipe(**arguments)
    other(**arguments)
    assert all(value is before[name] for name, value in pipe.components.items())
    assert all(torch.equal(v, weights[k]) for k, v in pipe.unet.state_dict().items())
    assert (dict(pipe.config), dict(pipe.scheduler.config)) == configs
    assert vars(pipe).keys() - attributes <= vars(other).keys()


@pytest.mark.parametrize("mode", ["text", "image", "inpaint"])
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_group_offload"])
def test_offload_keeps_the_image(family, make_pipeline, components, mode, offload):
    """Offloading hooks (here from CPU to CPU) act in both modes, change nothing, and are in place afterwards."""
    arguments = {"prompt": "a seven", "num_inference_steps": 2, "output_type": "np", **image_arguments(mode)}
    models = (*family.text_encoders, "unet", "vae")
    copies = {name: copy.deepcopy(components[name]) for name in models}
    pipe = make_pipeline(**copies)
    expected = pipe(generator=seeded(), **arguments).images
    if offload == "enable_model_cpu_offload":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    np.testing.assert_array_equal(pipe(generator=seeded(), **arguments).images, expected)
    if offload == "enable_model_cpu_offload":
        assert len(pipe._all_hooks) == len(models)
        assert all(hasattr(getattr(pipe, name), "_hf_hook") for name in models)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="sequential offload needs an accelerator, in stock too")
@pytest.mark.parametrize("mode", ["text", "image", "inpaint"])
def test_sequential_offload(family, repo, mode):
    """Sequential offload gives the image of the pipeline that lies whole on the accelerator."""
    arguments = {"prompt": "a seven", "num_inference_steps": 2, "output_type": "np", **image_arguments(mode)}
    expected = family.ours.from_pretrained(repo).to("cuda")(generator=seeded(), **arguments).images
    pipe = family.ours.from_pretrained(repo)
    pipe.enable_sequential_cpu_offload()
    np.testing.assert_allclose(pipe(generator=seeded(), **arguments).images, expected, atol=1e-3)


def test_euler_ancestral_in_its_place(make_pipeline):
    """The released Turbo scheduler: stock's images where its spacing is the student's, otherwise a clear refusal."""
    pipe, other = make_pipeline(), make_pipeline("text")
    for p in (pipe, other):
        p.scheduler = EulerAncestralDiscreteScheduler.from_config(p.scheduler.config)
    common = {"prompt": "a seven", "num_inference_steps": 4, "output_type": "np"}
    np.testing.assert_array_equal(
        pipe(generator=seeded(), **common).images, other(generator=seeded(), guidance_scale=0.0, **common).images
    )
    with pytest.raises(ValueError, match=r"EulerAncestralDiscreteScheduler cannot visit .*\[999, 749, 249\].*DDPM"):
        pipe("a seven", num_inference_steps=3)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("cls", [DDIMScheduler, PNDMScheduler])
def test_a_teachers_scheduler_is_refused_with_the_mend(make_pipeline, cls, steps):
    """The base model's own scheduler (a LoRA student on it) would visit timesteps of its own; the mend works."""
    config = make_scheduler("v_prediction").config
    pipe = make_pipeline(scheduler=cls.from_config(config, skip_prk_steps=True, timestep_spacing="leading"))
    with pytest.raises(ValueError, match=rf"scheduler={cls.__name__} .*rescale_betas_zero_snr=True") as error:
        pipe("a seven", num_inference_steps=steps)
    mend = str(error.value).split("pipe.scheduler = ")[1].rstrip(".")
    pipe.scheduler = eval(mend, {"DDPMScheduler": DDPMScheduler, "pipe": pipe})
    ours = pipe("a seven", num_inference_steps=steps, generator=seeded(), output_type="latent").images
    published = make_pipeline(prediction_type="v_prediction")
    assert torch.equal(
        ours, published("a seven", num_inference_steps=steps, generator=seeded(), output_type="latent").images
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 0}, r"num_inference_steps=0 .*Use 1 to 4"),
        ({"num_inference_steps": 5}, r"num_inference_steps=5 .*\[249, 499, 749, 999\].*Use 1 to 4"),
        ({"timesteps": [999, 500]}, r"timesteps=\[999, 500\] must be a descending selection of the student's \(249"),
        ({"timesteps": [499, 999]}, "descending"),
        ({"timesteps": []}, r"timesteps=\[\] must be"),
        ({"timesteps": [749, 499]}, "must start at 999 without image"),
        ({"strength": 0.5}, "strength=0.5 has no effect without image"),
        ({"image": picture(), "num_inference_steps": 1}, r"strength=0.8 with num_inference_steps=1 .*at least 1.0"),
        ({"image": picture(), "strength": 0.2}, r"strength=0.2 with num_inference_steps=4 .*at least 0.25"),
        ({"image": picture(), "strength": 1.2}, r"strength=1.2 is out of range: it must be in \(0, 1\]"),
        ({"image": picture(), "strength": 0.3, "num_inference_steps": 3}, r"strength=0.3 .*strength of at least 0.34"),
        ({"image": picture(), "strength": 0.0, "num_inference_steps": 4}, r"strength=0.0 .*\(0, 1\]"),
        ({"image": picture(), "strength": 1.5, "num_inference_steps": 4}, r"strength=1.5 .*\(0, 1\]"),
        (
            {"image": picture(), "strength": 1.0, "height": 32, "width": 32},
            "height, width cannot be combined",
        ),
        (
            {"image": picture(), "strength": 1.0, "latents": torch.zeros(1, 4, 8, 8)},
            "latents cannot be combined with",
        ),
        ({"mask_image": picture()[:, :1]}, "mask_image has no effect without image. Pass image"),
        ({"image": picture(), "padding_mask_crop": 2}, "padding_mask_crop=2 has no effect without mask_image"),
        ({"image": picture(), "mask_image": picture()[:, :1], "strength": 0.1}, r"strength=0.1 .*at least 0.25"),
        ({"prompt": None}, "Provide either `prompt` or `prompt_embeds`"),
    ],
)
def test_refused_input(make_pipeline, arguments, message):
    """Each refusal names the argument, its value and the mend, before any network runs."""
    pipe = make_pipeline()
    hook = pipe.unet.register_forward_pre_hook(lambda *_: pytest.fail("the UNet ran"))
    try:
        with pytest.raises(ValueError, match=message):
            pipe(**{"prompt": "a seven"} | arguments)
    finally:
        hook.remove()


def test_unknown_arguments_are_not_swallowed(make_pipeline):
    """Stock pipelines ignore a misspelt argument; ours does not."""
    with pytest.raises(TypeError, match="num_image_per_prompt"):
        make_pipeline()("a seven", num_image_per_prompt=2)


@pytest.mark.parametrize("kind", ["image", "mask_image"])
def test_arguments_that_a_family_lacks(family, make_pipeline, kind):
    """guidance_rescale exists beside image in SDXL only; there left at its default it is not in the way."""
    arguments = {"image": picture(), "mask_image": picture()[:, :1] if kind == "mask_image" else None, "strength": 1.0}
    pipe = make_pipeline()
    pipe("a seven", guidance_rescale=0.0, **arguments)
    if family is SDXL:
        pipe("a seven", guidance_rescale=0.7, **arguments)
    else:
        with pytest.raises(ValueError, match=f"guidance_rescale cannot .* with {kind}, as in StableDiff"):
            pipe("a seven", guidance_rescale=0.7, **arguments)


@pytest.mark.parametrize(
    ("strength", "mask", "visited"),
    [(None, False, [499]), (None, True, [999]), (0.5, False, [499]), (0.3, True, [249]), (1.0, False, [999])],
)
def test_an_image_needs_no_number_of_steps(make_pipeline, strength, mask, visited):
    """Without num_inference_steps, the fewest are taken of which strength leaves one."""
    seen = []

    def note(_, step, t, kwargs):
        seen.append(int(t))
        return kwargs

    arguments = {"image": picture(), "mask_image": picture()[:, :1] if mask else None, "strength": strength}
    make_pipeline()("a seven", callback_on_step_end=note, **arguments)
    assert seen == visited

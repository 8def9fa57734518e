"""ADDPipeline's images against the stock pipelines' and against hand-written loops of the method."""

import copy

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)

from examples.tiny.models import make_scheduler
from pipelines import ADDPipeline, spread_timesteps

TURBO = (699, 799, 899, 999)
STRENGTH = {1: 1.0, 2: 0.5, 4: 0.75}  # leaves 1, 1 and 3 steps


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, 32, 32, generator=seeded(9))


def stock(make_pipeline, mode, **kwargs):
    return make_pipeline({"text": StableDiffusionPipeline, "image": StableDiffusionImg2ImgPipeline}[mode], **kwargs)


def image_arguments(mode: str, steps: int, batch: int = 1) -> dict:
    return {} if mode == "text" else {"image": picture(batch), "strength": STRENGTH[steps]}


@pytest.mark.parametrize(
    ("student", "steps", "expected"),
    [
        ((249, 499, 749, 999), 1, [999]),
        ((249, 499, 749, 999), 2, [999, 499]),
        ((249, 499, 749, 999), 3, [999, 749, 249]),
        ((249, 499, 749, 999), 4, [999, 749, 499, 249]),
        ((999, 699, 899, 799), 2, [999, 799]),
        ((999,), 1, [999]),
        (range(99, 1000, 100), 5, [999, 799, 599, 399, 199]),
    ],
)
def test_spread_timesteps(student, steps, expected):
    """Trailing spacing over the student's own timesteps."""
    assert spread_timesteps(student, steps) == expected


@pytest.mark.parametrize("steps", range(1, 1001, 37))
def test_spread_timesteps_is_trailing(steps):
    """Over all T timesteps it is what stock schedulers call trailing; never a timestep twice."""
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    ours = spread_timesteps(range(1000), steps)
    assert len(set(ours)) == steps
    # Stock rounds halves the other way, and sometimes adds a step by rounding error.
    np.testing.assert_allclose(ours, scheduler.timesteps[:steps], atol=1)


CASES = {
    "prompt": {"prompt": "a handwritten seven"},
    "batch": {"prompt": ["a seven", "an eight"], "num_images_per_prompt": 2},
    "generators": {"prompt": ["a seven", "an eight"], "generator": [1, 2]},
    "prompt_embeds": {"prompt_embeds": torch.randn(2, 24, 32, generator=seeded(3))},
    "clip_skip": {"prompt": "a seven", "clip_skip": 1},
    "guidance": {"prompt": "a seven", "negative_prompt": "an eight", "guidance_scale": 3.0},
}


BATCH = {"batch": 4, "generators": 2, "prompt_embeds": 2}  # input images; fewer than outputs are deprecated


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("mode", ["text", "image"])
@pytest.mark.parametrize("case", CASES)
def test_same_arguments_same_image(make_pipeline, components, monkeypatch, case, mode, prediction_type, steps):
    """Bit for bit the stock pipeline's image for the same arguments and seed."""
    seeds = CASES[case].get("generator", steps)

    def sample(pipe):
        generator = [seeded(s) for s in seeds] if isinstance(seeds, list) else seeded(seeds)
        arguments = {"guidance_scale": 0.0} | CASES[case] | image_arguments(mode, steps, BATCH.get(case, 1))
        return pipe(**arguments | {"generator": generator, "num_inference_steps": steps, "output_type": "np"}).images

    text_encoder = components["text_encoder"]
    if not hasattr(text_encoder, "text_model"):  # which stock clip_skip asks for, but newer transformers lack
        monkeypatch.setitem(vars(text_encoder), "text_model", text_encoder)
    ours = sample(make_pipeline(prediction_type=prediction_type))
    np.testing.assert_array_equal(ours, sample(stock(make_pipeline, mode, prediction_type=prediction_type)))
    assert ours.std() > 0.01


def test_defaults_are_one_step_without_guidance(make_pipeline, components):
    """`pipe(prompt)` is one UNet pass on one sample, and a seed decides the image."""
    seen = []
    hook = components["unet"].register_forward_pre_hook(lambda _, args: seen.append((len(args[0]), args[1].item())))
    images = [make_pipeline()("a seven", generator=seeded(s), output_type="np").images for s in (0, 0, 1)]
    hook.remove()
    assert seen == [(1, 999)] * 3
    np.testing.assert_array_equal(images[0], images[1])
    assert np.abs(images[0] - images[2]).max() > 0.05


@pytest.mark.parametrize(
    ("student", "steps"), [((249, 499, 749, 999), 3), (TURBO, 1), (TURBO, 2), (TURBO, 3), (TURBO, 4)]
)
@pytest.mark.parametrize("mode", ["text", "image"])
def test_other_students_use_their_own_timesteps(make_pipeline, mode, student, steps):
    """Where stock spacing would leave the student's set, ours stays in it; stock agrees when passed the timesteps."""
    pipe = make_pipeline(student_timesteps=student)
    arguments = {} if mode == "text" else {"image": picture(), "strength": 1.0}
    visited = []

    def note(_, step, t, kwargs):
        visited.append(int(t))
        return kwargs

    common = {"prompt": "a seven", "output_type": "np"} | arguments
    ours = pipe(num_inference_steps=steps, generator=seeded(), callback_on_step_end=note, **common).images
    assert visited == pipe.sampling_timesteps(steps)
    assert set(visited) <= set(student)
    other = stock(make_pipeline, mode, student_timesteps=student)
    np.testing.assert_array_equal(
        ours, other(timesteps=visited, guidance_scale=0.0, generator=seeded(), **common).images
    )


def test_explicit_timesteps(make_pipeline):
    """A released Turbo sampler takes the student's largest timesteps: two steps are [999, 899]."""
    pipe = make_pipeline(student_timesteps=TURBO)
    kwargs = {"timesteps": [999, 899], "output_type": "latent"}
    ours = pipe("a seven", generator=seeded(), **kwargs).images
    other = stock(make_pipeline, "text")("a seven", generator=seeded(), guidance_scale=0.0, **kwargs).images
    assert torch.equal(ours, other)
    assert not torch.equal(ours, pipe("a seven", 32, 32, 2, generator=seeded(), output_type="latent").images)


def method_loop(pipe, prediction_type: str, timesteps: list[int], renoise: bool) -> torch.Tensor:
    """The method's sampler, written out: unit noise at 999, x0 from the prediction, then the next marginal."""
    tokens = pipe.tokenizer("a seven", padding="max_length", return_tensors="pt").input_ids
    embeds = pipe.text_encoder(tokens)[0]
    a = make_scheduler().alphas_cumprod.double().sqrt()
    if prediction_type == "v_prediction":
        a = (a - a[-1]) * a[0] / (a[0] - a[-1])
    sigma = (1 - a**2).sqrt()
    generator = seeded(4)
    draw = lambda: torch.randn(1, 4, 8, 8, generator=generator).double()  # noqa: E731
    x = draw()
    for t, after in zip(timesteps, [*timesteps[1:], None]):
        output = pipe.unet(x.float(), t, embeds).sample.double()
        x0 = a[t] * x - sigma[t] * output if prediction_type == "v_prediction" else (x - sigma[t] * output) / a[t]
        if after is None:
            return x0
        if renoise:
            x = a[after] * x0 + sigma[after] * draw()
        else:  # q(x_after | x_t, x0) in closed form
            ratio = a[t] / a[after]
            mean = (ratio * sigma[after] ** 2 * x + a[after] * (1 - ratio**2) * x0) / sigma[t] ** 2
            x = mean + sigma[after] * (1 - ratio**2).sqrt() / sigma[t] * draw()


@pytest.mark.parametrize("renoise", [False, True])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("student", "steps"), [((249, 499, 749, 999), n) for n in (1, 2, 3, 4)] + [(TURBO, 3)])
def test_against_the_method(make_pipeline, complaints, student, steps, prediction_type, renoise):
    """Ancestral sampling and full re-noising are the method's loop with the same noise."""
    pipe = make_pipeline(prediction_type=prediction_type, student_timesteps=student)
    if renoise:
        pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=1000)
    latents = pipe("a seven", num_inference_steps=steps, generator=seeded(4), output_type="latent").images
    expected = method_loop(pipe, prediction_type, spread_timesteps(student, steps), renoise)
    torch.testing.assert_close(latents.double(), expected, rtol=1e-4, atol=2e-4)
    assert complaints == []


def test_image_to_image_starts_where_strength_names(make_pipeline):
    """strength 0.5 of 4 steps: encode, noise to 499, two steps; a small strength stays nearer to the input."""
    pipe = make_pipeline(prediction_type="v_prediction")
    visited = []

    def note(_, step, t, kwargs):
        visited.append((step, int(t), tuple(kwargs["latents"].shape)))
        return kwargs

    pipe("a seven", image=picture(), strength=0.5, num_inference_steps=4, callback_on_step_end=note)
    assert visited == [(0, 499, (1, 4, 8, 8)), (1, 249, (1, 4, 8, 8))]

    latents = torch.randn(1, 4, 8, 8, generator=seeded(8))  # latents as `image` skip the encoder
    a = make_scheduler().alphas_cumprod.double().sqrt()
    a = ((a - a[-1]) * a[0] / (a[0] - a[-1]))[499]
    x = a * latents + (1 - a**2).sqrt() * torch.randn(1, 4, 8, 8, generator=seeded(4))
    tokens = pipe.tokenizer("a seven", padding="max_length", return_tensors="pt").input_ids
    v = pipe.unet(x.float(), 499, pipe.text_encoder(tokens)[0]).sample
    out = pipe(
        "a seven", image=latents, strength=0.5, num_inference_steps=2, generator=seeded(4), output_type="latent"
    ).images
    torch.testing.assert_close(out, (a * x - (1 - a**2).sqrt() * v).float(), rtol=1e-4, atol=1e-5)


def test_stock_default_strength(make_pipeline):
    """Without strength the stock default 0.8 holds, so 4 steps leave 3."""
    common = {"prompt": "a seven", "image": picture(), "num_inference_steps": 4, "output_type": "np"}
    ours = make_pipeline()(generator=seeded(), **common).images
    other = stock(make_pipeline, "image")(generator=seeded(), guidance_scale=0.0, **common).images
    np.testing.assert_array_equal(ours, other)


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
    images, nsfw = pipe("a seven", generator=seeded(), output_type="np", return_dict=False)
    np.testing.assert_array_equal(images, out["np"])
    assert nsfw is None


def test_latents_and_size(make_pipeline):
    """Given latents replace the generator's; height and width set the size."""
    pipe = make_pipeline()
    latents = torch.randn(1, 4, 12, 16, generator=seeded(2))
    given = pipe("a seven", 48, 64, latents=latents, output_type="np").images
    drawn = pipe("a seven", height=48, width=64, generator=seeded(2), output_type="np").images
    assert given.shape == (1, 48, 64, 3)
    np.testing.assert_array_equal(given, drawn)


@pytest.mark.parametrize("mode", ["text", "image"])
def test_callback_changes_and_interrupts(make_pipeline, components, mode):
    """A callback sees the student's timesteps, may replace latents, and an interrupt set on OUR pipeline stops both."""
    pipe, passes = make_pipeline(), []
    common = {"prompt": "a seven", "num_inference_steps": 4, "output_type": "latent"}
    common |= {} if mode == "text" else {"image": picture(), "strength": 1.0}
    hook = components["unet"].register_forward_pre_hook(lambda _, args: passes.append(int(args[1])))

    def stop_after_second(_, step, t, kwargs):
        pipe._interrupt = step == 1
        return {"latents": kwargs["latents"] * 0 + step}

    images = pipe(callback_on_step_end=stop_after_second, **common).images
    hook.remove()
    assert passes == [999, 749]
    assert torch.equal(images, torch.ones(1, 4, 8, 8))
    assert pipe.num_timesteps == 4


@pytest.mark.parametrize("mode", ["text", "image"])
def test_components_are_left_as_they_were(make_pipeline, mode):
    """A call neither replaces nor changes a component, and leaves no attribute that a stock call would not."""
    pipe, other = make_pipeline(), stock(make_pipeline, mode)
    before = pipe.components
    weights = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    config = dict(pipe.scheduler.config)
    arguments = {"prompt": "a seven", "num_inference_steps": 2, **image_arguments(mode, 2)}
    pipe(**arguments)
    other(**arguments)
    assert all(value is before[name] for name, value in pipe.components.items())
    assert all(torch.equal(v, weights[k]) for k, v in pipe.unet.state_dict().items())
    assert dict(pipe.scheduler.config) == config
    assert vars(pipe).keys() - vars(other).keys() <= {"_is_unet_config_sample_size_int"}


@pytest.mark.parametrize("mode", ["text", "image"])
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_group_offload"])
def test_offload_keeps_the_image(make_pipeline, components, mode, offload):
    """Offloading hooks (here from CPU to CPU) act in both modes, change nothing, and are in place afterwards."""
    arguments = {"prompt": "a seven", "num_inference_steps": 2, "output_type": "np", **image_arguments(mode, 2)}
    copies = {name: copy.deepcopy(components[name]) for name in ("text_encoder", "unet", "vae")}
    pipe = make_pipeline(**copies)
    expected = pipe(generator=seeded(), **arguments).images
    if offload == "enable_model_cpu_offload":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    np.testing.assert_array_equal(pipe(generator=seeded(), **arguments).images, expected)
    if offload == "enable_model_cpu_offload":
        assert len(pipe._all_hooks) == 3
        assert all(hasattr(getattr(pipe, name), "_hf_hook") for name in ("text_encoder", "unet", "vae"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="sequential offload needs an accelerator, in stock too")
@pytest.mark.parametrize("mode", ["text", "image"])
def test_sequential_offload(repo, mode):
    """Sequential offload gives the image of the pipeline that lies whole on the accelerator."""
    arguments = {"prompt": "a seven", "num_inference_steps": 2, "output_type": "np", **image_arguments(mode, 2)}
    expected = ADDPipeline.from_pretrained(repo).to("cuda")(generator=seeded(), **arguments).images
    pipe = ADDPipeline.from_pretrained(repo)
    pipe.enable_sequential_cpu_offload()
    np.testing.assert_allclose(pipe(generator=seeded(), **arguments).images, expected, atol=1e-3)


def test_from_pipe_both_ways(make_pipeline):
    """`from_pipe` between stock and ours shares the components and the student's timesteps."""
    ours = ADDPipeline.from_pipe(make_pipeline(StableDiffusionPipeline, student_timesteps=TURBO))
    assert ours.student_timesteps == TURBO
    back = StableDiffusionImg2ImgPipeline.from_pipe(ours)
    assert type(back) is StableDiffusionImg2ImgPipeline
    assert back.unet is ours.unet


def test_euler_ancestral_in_its_place(make_pipeline):
    """The released Turbo scheduler: stock's images where its spacing is the student's, otherwise a clear refusal."""
    pipe, other = make_pipeline(), stock(make_pipeline, "text")
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
    assert torch.equal(ours, published("a seven", 32, 32, steps, generator=seeded(), output_type="latent").images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 0}, r"num_inference_steps=0 .*Use 1 to 4"),
        ({"num_inference_steps": 5}, r"num_inference_steps=5 .*\[249, 499, 749, 999\].*Use 1 to 4"),
        ({"timesteps": [999, 500]}, r"timesteps=\[999, 500\] must be a descending choice of the student's \(249"),
        ({"timesteps": [499, 999]}, "descending"),
        ({"timesteps": []}, r"timesteps=\[\] must be"),
        ({"timesteps": [749, 499]}, "must start at 999 without image"),
        ({"strength": 0.5}, "strength=0.5 has no meaning without image"),
        ({"image": picture()}, r"strength=0.8 with num_inference_steps=1 .*at least 1.0"),
        ({"image": picture(), "strength": 0.3, "num_inference_steps": 3}, r"strength=0.3 .*strength of at least 0.34"),
        ({"image": picture(), "strength": 0.0, "num_inference_steps": 4}, r"strength=0.0 .*\(0, 1\]"),
        ({"image": picture(), "strength": 1.5, "num_inference_steps": 4}, r"strength=1.5 .*\(0, 1\]"),
        ({"image": picture(), "strength": 1.0, "height": 32, "width": 32}, "height, width cannot go with image"),
        ({"image": picture(), "strength": 1.0, "latents": torch.zeros(1, 4, 8, 8)}, "latents cannot go with image"),
        ({"image": picture(), "strength": 1.0, "guidance_rescale": 0.7}, "guidance_rescale cannot go with image"),
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

"""Both families' images against the stock pipelines' and against hand-written loops of the method."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    LCMScheduler,
)

from examples.tiny.models import make_scheduler
from pipelines import spread_timesteps

TURBO = (699, 799, 899, 999)
STRENGTH = {1: 1.0, 2: 0.5, 4: 0.75}  # leaves 1, 1 and 3 steps


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, 32, 32, generator=seeded(9))


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
    "prompt_embeds": {},  # the family's, in place of a prompt
    "clip_skip": {"prompt": "a seven", "clip_skip": 1},
    "guidance": {"prompt": "a seven", "negative_prompt": "an eight", "guidance_scale": 3.0},
}


BATCH = {"batch": 4, "generators": 2, "prompt_embeds": 2}  # input images; fewer than outputs are deprecated


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("mode", ["text", "image"])
@pytest.mark.parametrize("case", CASES)
def test_same_arguments_same_image(family, make_pipeline, components, monkeypatch, case, mode, prediction_type, steps):
    """Bit for bit the stock pipeline's image for the same arguments and seed."""
    seeds = CASES[case].get("generator", steps)
    prompt = family.embeds(2) if case == "prompt_embeds" else CASES[case]

    def sample(pipe):
        generator = [seeded(s) for s in seeds] if isinstance(seeds, list) else seeded(seeds)
        arguments = {"guidance_scale": 0.0} | prompt | image_arguments(mode, steps, BATCH.get(case, 1))
        return pipe(**arguments | {"generator": generator, "num_inference_steps": steps, "output_type": "np"}).images

    text_encoder = components["text_encoder"]
    if not hasattr(text_encoder, "text_model"):  # which Stable Diffusion's stock clip_skip asks for, but is no more
        monkeypatch.setitem(vars(text_encoder), "text_model", text_encoder)
    ours = sample(make_pipeline(prediction_type=prediction_type))
    np.testing.assert_array_equal(ours, sample(make_pipeline(mode, prediction_type=prediction_type)))
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
    other = make_pipeline(mode, student_timesteps=student)
    np.testing.assert_array_equal(
        ours, other(timesteps=visited, guidance_scale=0.0, generator=seeded(), **common).images
    )


def test_explicit_timesteps(make_pipeline):
    """A released Turbo sampler takes the student's largest timesteps: two steps are [999, 899]."""
    pipe = make_pipeline(student_timesteps=TURBO)
    kwargs = {"timesteps": [999, 899], "output_type": "latent"}
    ours = pipe("a seven", generator=seeded(), **kwargs).images
    other = make_pipeline("text")("a seven", generator=seeded(), guidance_scale=0.0, **kwargs).images
    assert torch.equal(ours, other)
    assert not torch.equal(
        ours, pipe("a seven", num_inference_steps=2, generator=seeded(), output_type="latent").images
    )


def method_loop(family, pipe, prediction_type: str, timesteps: list[int], renoise: bool) -> torch.Tensor:
    """The method's sampler, written out: unit noise at 999, x0 from the prediction, then the next marginal."""
    condition = family.condition(pipe, "a seven")
    a = make_scheduler().alphas_cumprod.double().sqrt()
    if prediction_type == "v_prediction":
        a = (a - a[-1]) * a[0] / (a[0] - a[-1])
    sigma = (1 - a**2).sqrt()
    generator = seeded(4)
    draw = lambda: torch.randn(1, 4, 8, 8, generator=generator).double()  # noqa: E731
    x = draw()
    for t, after in zip(timesteps, [*timesteps[1:], None]):
        output = pipe.unet(x.float(), t, **condition).sample.double()
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
def test_against_the_method(family, make_pipeline, complaints, student, steps, prediction_type, renoise):
    """Ancestral sampling and full re-noising are the method's loop with the same noise."""
    pipe = make_pipeline(prediction_type=prediction_type, student_timesteps=student)
    if renoise:
        pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=1000)
    latents = pipe("a seven", num_inference_steps=steps, generator=seeded(4), output_type="latent").images
    expected = method_loop(family, pipe, prediction_type, spread_timesteps(student, steps), renoise)
    torch.testing.assert_close(latents.double(), expected, rtol=1e-4, atol=2e-4)
    assert complaints == []


def test_image_to_image_starts_where_strength_names(family, make_pipeline):
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
    v = pipe.unet(x.float(), 499, **family.condition(pipe, "a seven")).sample
    out = pipe(
        "a seven", image=latents, strength=0.5, num_inference_steps=2, generator=seeded(4), output_type="latent"
    ).images
    torch.testing.assert_close(out, (a * x - (1 - a**2).sqrt() * v).float(), rtol=1e-4, atol=1e-5)


def test_default_strength(make_pipeline):
    """0.8 for both families, so 4 steps leave 3: SDXL's stock 0.3 would leave most students none."""
    common = {"prompt": "a seven", "image": picture(), "num_inference_steps": 4, "output_type": "np"}
    ours = make_pipeline()(generator=seeded(), **common).images
    other = make_pipeline("image")(generator=seeded(), guidance_scale=0.0, strength=0.8, **common).images
    np.testing.assert_array_equal(ours, other)

"""Inpainting at the student's timesteps: the stock pipelines' images, and what lies outside the mask is kept."""

import numpy as np
import PIL.Image
import pytest
import torch

TURBO = (699, 799, 899, 999)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs() -> dict:
    """A picture, and a mask that paints its right half anew."""
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1
    return {"prompt": "a seven", "image": torch.rand(1, 3, 32, 32, generator=seeded(9)), "mask_image": mask}


@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (2, 0.5), (4, 0.75)])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_same_arguments_same_image(make_pipeline, prediction_type, steps, strength):
    """Bit for bit the stock inpainting pipeline's image."""
    arguments = {"num_inference_steps": steps, "strength": strength, "output_type": "np", **inputs()}
    ours = make_pipeline(prediction_type=prediction_type)(generator=seeded(), **arguments).images
    other = make_pipeline("inpaint", prediction_type=prediction_type)
    np.testing.assert_array_equal(ours, other(generator=seeded(), guidance_scale=0.0, **arguments).images)


def test_what_is_not_masked_is_kept(make_pipeline):
    """One step at strength 1 by default: left the encoded picture, right what the mask asked for."""
    pipe, visited = make_pipeline(), []

    def note(_, step, t, kwargs):
        visited.append(int(t))
        return kwargs

    out = pipe(generator=seeded(), output_type="latent", callback_on_step_end=note, **inputs()).images
    assert visited == [999]
    with torch.no_grad():  # the pipeline draws its latents from the same posterior first
        posterior = pipe.vae.encode(inputs()["image"] * 2 - 1).latent_dist
    encoded = posterior.sample(seeded()) * pipe.vae.config.scaling_factor
    torch.testing.assert_close(out[..., :4], encoded[..., :4])
    assert (out - encoded)[..., 4:].abs().mean() > 0.1


@pytest.mark.parametrize("steps", [2, 3])
def test_other_students_use_their_own_timesteps(make_pipeline, steps):
    """Where stock spacing would leave the student's set, ours stays in it; stock agrees when passed the timesteps."""
    pipe = make_pipeline(student_timesteps=TURBO)
    arguments = {"output_type": "np", "strength": 1.0, **inputs()}
    ours = pipe(num_inference_steps=steps, generator=seeded(), **arguments).images
    stock = make_pipeline("inpaint", student_timesteps=TURBO)
    timesteps = pipe.sampling_timesteps(steps)
    assert set(timesteps) <= set(TURBO)
    other = stock(timesteps=timesteps, generator=seeded(), guidance_scale=0.0, **arguments).images
    np.testing.assert_array_equal(ours, other)


def test_crop_and_size(make_pipeline):
    """PIL input, height and width, and a crop around the mask are stock's; what is not in the crop is untouched."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[8:24, 8:24] = 255
    arguments = {"image": PIL.Image.fromarray(pixels), "mask_image": PIL.Image.fromarray(mask)}
    arguments |= {"prompt": "a seven", "height": 32, "width": 48, "padding_mask_crop": 4, "strength": 1.0}
    arguments |= {"num_inference_steps": 1}
    ours = make_pipeline()(generator=seeded(), **arguments).images[0]
    other = make_pipeline("inpaint")(generator=seeded(), guidance_scale=0.0, **arguments).images[0]
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(other))
    assert ours.size == (64, 64)
    np.testing.assert_array_equal(np.asarray(ours)[40:], pixels[40:])
    assert (np.asarray(ours)[8:24, 8:24] != pixels[8:24, 8:24]).mean() > 0.5

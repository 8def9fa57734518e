"""What only SDXL has: sizes and crop, a second prompt, pooled embeddings, and zeros for a negative prompt not given."""

import numpy as np
import pytest
import torch

from examples.tiny.models import make_scheduler
from pipelines import student_scheduler
from tests.pipelines.families import SDXL

GUIDED = {"guidance_scale": 3.0}
CASES = {
    "original_size": {"original_size": (300, 20)},
    "crops_coords_top_left": {"crops_coords_top_left": (5, 90)},
    "target_size": {"target_size": (64, 700)},
    "prompt_2": {"prompt_2": "an eight"},
    "negative_prompt_2": {"negative_prompt": "a seven", "negative_prompt_2": "an eight", **GUIDED},
    "negative_original_size": {"negative_original_size": (300, 20), "negative_target_size": (64, 700), **GUIDED},
    "clip_skip": {"clip_skip": 1},
}


@pytest.fixture(scope="module")
def components() -> dict:
    return SDXL.components()


def make(components, kind: str = "ours", **config):
    scheduler = student_scheduler(make_scheduler().config, "epsilon")
    pipe = {"ours": SDXL.ours, **SDXL.stock}[kind](**components, scheduler=scheduler, **config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, mode: str, **kwargs) -> np.ndarray:
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    mask = torch.ones(1, 1, 32, 32)
    arguments = {"prompt": "a seven", "num_inference_steps": 2, "guidance_scale": 0.0, "output_type": "np"}
    arguments |= {} if mode == "text" else {"image": picture, "strength": 0.5}
    arguments |= {"mask_image": mask} if mode == "inpaint" else {}
    return pipe(generator=torch.Generator().manual_seed(0), **arguments | kwargs).images


@pytest.mark.parametrize("mode", ["text", "image", "inpaint"])
@pytest.mark.parametrize("name", CASES)
def test_argument_is_stocks_and_acts(components, name, mode):
    """Each of SDXL's own arguments gives stock's image, and another one than without it."""
    arguments, pipe = CASES[name], make(components)
    image = sample(pipe, mode, **arguments)
    np.testing.assert_array_equal(image, sample(make(components, mode), mode, **arguments))
    without = sample(pipe, mode, **{k: v for k, v in arguments.items() if k != name})
    assert np.abs(image - without).max() > 1e-4


@pytest.mark.parametrize("mode", ["text", "image", "inpaint"])
def test_zeros_for_a_negative_prompt_not_given(components, mode):
    """`force_zeros_for_empty_prompt` decides what guidance leads away from, as in stock; without guidance nothing."""
    images = {}
    for force in (True, False):
        config = {"force_zeros_for_empty_prompt": force}
        pipe, stock = make(components, **config), make(components, mode, **config)
        images[force] = sample(pipe, mode, **GUIDED)
        np.testing.assert_array_equal(images[force], sample(stock, mode, **GUIDED))
        np.testing.assert_array_equal(sample(pipe, mode), sample(make(components), mode))
    assert np.abs(images[True] - images[False]).max() > 1e-4


def test_prompt_embeds_need_their_pooled_part(components):
    """Stock's own refusal, before the UNet runs."""
    embeds = SDXL.embeds(1)
    del embeds["pooled_prompt_embeds"]
    with pytest.raises(ValueError, match="pooled_prompt_embeds"):
        make(components)(**embeds)


def test_zero_forcing_is_published(components, tmp_path):
    """The choice travels in model_index.json."""
    make(components, force_zeros_for_empty_prompt=False).save_pretrained(tmp_path)
    assert SDXL.ours.from_pretrained(tmp_path).config.force_zeros_for_empty_prompt is False

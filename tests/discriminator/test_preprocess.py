"""Fitting images to the feature network's input."""

import itertools
from collections import Counter

import pytest
import torch

from discriminator.preprocess import fit_to_input_size, normalize, resize

RESIZE = (0.5, 0.0, 0.0)  # the coin's other side


def ramp(height, width):
    """An image whose pixels are all different: value = row * width + column."""
    return torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width).repeat(2, 3, 1, 1)


def test_area_resize_is_the_block_mean():
    """Halving by area averaging equals the mean of 2 x 2 blocks."""
    x = ramp(8, 12)[..., :8]
    expected = x.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(resize(x, 4), expected)
    torch.testing.assert_close(fit_to_input_size(x, 4, RESIZE), expected)


def test_small_images_are_interpolated_linearly():
    """Doubling a ramp keeps it a ramp of half the slope away from the border, where repetition would make steps."""
    x = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 3, 6, 6)
    out = fit_to_input_size(x, 12, (0.0, 0.9, 0.9))
    torch.testing.assert_close(out[0, 0, 3, 1:-1], torch.arange(10) * 0.5 + 0.25)


def test_equal_size_is_untouched():
    """An image of the right size comes back itself, whatever the coin."""
    x = ramp(6, 6)
    assert fit_to_input_size(x, 6, (0.0, 0.9, 0.9)) is x


def test_crop_is_one_window_for_the_batch():
    """A verbatim window, the same in all samples, at the place named; every place occurs, about equally often."""
    x, corners, steps = ramp(6, 8), Counter(), 12
    for down, right in itertools.product(range(steps), range(steps)):
        out = fit_to_input_size(x, 5, (0.0, down / steps, right / steps))
        row, column = divmod(int(out[0, 0, 0, 0]), 8)
        assert torch.equal(out, x[..., row : row + 5, column : column + 5])
        corners[row, column] += 1
    assert corners == {(row, column): 18 for row in range(2) for column in range(4)}


def test_coin_falls_at_one_half():
    """Coins below 0.5 crop, the others resize."""
    x = ramp(8, 8)
    for coin in (0.0, 0.25, 0.499):
        assert torch.equal(fit_to_input_size(x, 4, (coin, 0.0, 0.99)), x[..., :4, 4:])
    for coin in (0.5, 0.75, 0.999):
        assert torch.equal(fit_to_input_size(x, 4, (coin, 0.0, 0.99)), resize(x, 4))


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (3, 3), (9, 6), (6, 9)])
def test_any_shape_becomes_square(shape):
    """One side smaller, both smaller, or not square: the result has the network's size and a constant stays one."""
    out = fit_to_input_size(torch.full((2, 3, *shape), 0.25), 6, (0.0, 0.9, 0.9))
    torch.testing.assert_close(out, torch.full((2, 3, 6, 6), 0.25))


def test_normalize():
    """(x - mean) / std, channel by channel."""
    x = torch.rand(2, 3, 4, 4)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 4.0])
    out = normalize(x, mean, std)
    for c in range(3):
        torch.testing.assert_close(out[:, c], (x[:, c] - mean[c]) / std[c])

"""Each operation of DiffAugment against its closed form."""

import numpy as np
import torch
from torch.autograd import gradcheck

from discriminator.augment import (
    AUGMENT_NUMBERS,
    _integer,
    brightness,
    contrast,
    cutout,
    diff_augment,
    saturation,
    translate,
)


def images(batch=3, height=10, width=12, dtype=torch.float64):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1


def uniform(batch, seed=0):
    return torch.rand(batch, AUGMENT_NUMBERS, generator=torch.Generator().manual_seed(seed))


def test_brightness_adds_per_sample():
    """Every pixel of sample i moves by offset i."""
    x, offset = images(), torch.tensor([0.5, -0.5, 0.0], dtype=torch.float64)
    for i in range(3):
        torch.testing.assert_close(brightness(x, offset)[i], x[i] + float(offset[i]))


def test_saturation_keeps_grey_and_scales_color():
    """Factor 0 gives the grey image, 1 the image, 2 doubles the distance from grey; the grey never changes."""
    x = images()
    out = saturation(x, torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    grey = x.mean(1, keepdim=True)
    torch.testing.assert_close(out.mean(1, keepdim=True), grey)
    torch.testing.assert_close(out[0], grey[0].expand(3, -1, -1))
    torch.testing.assert_close(out[1], x[1])
    torch.testing.assert_close(out[2], 2 * x[2] - grey[2])


def test_contrast_scales_deviation_from_image_mean():
    """The image's mean stays and its standard deviation is multiplied by the factor, sample by sample."""
    x, factor = images(), torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    out = contrast(x, factor)
    torch.testing.assert_close(out.mean((1, 2, 3)), x.mean((1, 2, 3)))
    torch.testing.assert_close(out.std((1, 2, 3)), x.std((1, 2, 3)) * factor)
    torch.testing.assert_close(out[1], x[1])


def test_translate_against_slices():
    """Shifting each sample by slices into a zero image, with both signs, zero, and different sides."""
    x = images(4)
    shifts = [(2, -3), (-1, 1), (0, 0), (3, 2)]
    down, right = torch.tensor(shifts).T
    expected = torch.zeros_like(x)
    for i, (dy, dx) in enumerate(shifts):
        for row in range(10):
            for column in range(12):
                if 0 <= row - dy < 10 and 0 <= column - dx < 12:
                    expected[i, :, row, column] = x[i, :, row - dy, column - dx]
    torch.testing.assert_close(translate(x, down, right), expected, rtol=0, atol=0)


def test_cutout_sets_one_box_to_zero():
    """A box inside, one across a corner, and one that covers a border: zero in the box, untouched elsewhere."""
    x = images()
    top, left = torch.tensor([2, -1, 8]), torch.tensor([3, -2, 5])
    expected = x.clone()
    expected[0, :, 2:4, 3:6] = 0
    expected[1, :, 0:1, 0:1] = 0
    expected[2, :, 8:10, 5:8] = 0
    torch.testing.assert_close(cutout(x, top, left, (2, 3)), expected, rtol=0, atol=0)


def test_gradients_of_every_operation():
    """Analytic gradients equal finite differences; what is shifted out or cut out has none."""
    x = images(2, 5, 6).requires_grad_()
    p = torch.tensor([0.3, 1.4], dtype=torch.float64)
    for operation in (brightness, saturation, contrast):
        assert gradcheck(lambda a, f=operation: f(a, p), x)
    shift = torch.tensor([1, -2])
    assert gradcheck(lambda a: translate(a, shift, -shift), x)
    assert gradcheck(lambda a: cutout(a, shift, shift, (2, 2)), x)
    (gradient,) = torch.autograd.grad(translate(x, shift, torch.zeros(2, dtype=torch.long)).sum(), x)
    assert gradient[0, :, -1].abs().sum() == 0
    assert (gradient[0, :, :-1] == 1).all()


def test_drawn_ranges_are_filled():
    """Over 4000 black images: brightness fills (-.5, .5), and the box of zeros is 20 % or cut off at the border."""
    side = 20
    out = diff_augment(torch.zeros(4000, 3, side, side), uniform(4000))
    value = out.flatten(1).gather(1, out.flatten(1).abs().argmax(1, keepdim=True))[:, 0]
    assert value.abs().max() <= 0.5
    assert value.min() < -0.49
    assert value.max() > 0.49
    # On a black image the only zeros are those of the translation and of the box.
    zeros = (out[:, 0] == 0).flatten(1).sum(1)
    limit = int(0.125 * side)
    assert zeros.max() <= side**2 - (side - limit) ** 2 + 4 * 4
    assert zeros.min() >= 0
    assert (zeros == 16).float().mean() > 0.01  # no translation, box inside
    # Rows wholly zero tell the vertical shift: each of -2..2 must occur about equally often.
    empty_rows = (out[:, 0] == 0).all(2)
    top, bottom = empty_rows[:, : side // 2].sum(1), empty_rows[:, side // 2 :].sum(1)
    down = np.bincount((top - bottom + limit).numpy(), minlength=2 * limit + 1) / 4000
    np.testing.assert_allclose(down, np.full(2 * limit + 1, 1 / (2 * limit + 1)), atol=0.03)


def test_contrast_and_saturation_ranges():
    """Two-level images tell both factors: contrast in (.5, 1.5) from grey images, saturation in (0, 2) from color."""
    half = torch.ones(2000, 3, 16, 16)
    half[:, :, :, 8:] = -1.0
    center = diff_augment(half, uniform(2000))
    spread = (center.amax((1, 2, 3)) - center.amin((1, 2, 3))) / 2
    assert 0.49 < spread.min() < 0.52
    assert 1.48 < spread.max() <= 1.5
    color = torch.zeros(2000, 3, 16, 16)
    color[:, 0], color[:, 1] = 1.0, -1.0
    out = diff_augment(color, uniform(2000))
    chroma = (out[:, 0] - out[:, 1]).amax((1, 2)) / 2  # saturation x contrast
    factor = chroma / spread  # the same numbers, so the same contrast
    assert factor.min() < 0.02
    assert 1.97 < factor.max() <= 2.001


def test_numbers_in_the_order_of_the_operations():
    """One image, written out operation by operation with the parameters that its seven numbers stand for."""
    x = images(1, 16, 24)
    numbers = torch.tensor([[0.9, 0.25, 0.75, 0.0, 0.999, 0.5, 0.999]])
    expected = contrast(saturation(brightness(x, x.new_tensor([0.4])), x.new_tensor([0.5])), x.new_tensor([1.25]))
    expected = translate(expected, torch.tensor([-2]), torch.tensor([3]))  # 12.5 % up, 12.5 % to the right
    expected[:, :, 7:10, 21:] = 0  # 3 x 5 pixels around row 8, column 23, cut off at the border
    torch.testing.assert_close(diff_augment(x, numbers), expected)


def test_integers_span_their_range():
    """The smallest and largest numbers of torch.rand give exactly the limits: no product rounds up beyond them."""
    ends = torch.tensor([0.0, 1 - 2**-24])
    for n in range(3000):
        assert _integer(ends, -n, n).tolist() == [-n, n]
        assert _integer(ends, 0, n).tolist() == [0, n]


def test_each_sample_has_its_own_numbers():
    """Equal images are augmented differently, and each as it would be alone."""
    x = images(1, 16, 16, torch.float32).expand(4, -1, -1, -1)
    numbers = uniform(4)
    out = diff_augment(x, numbers)
    assert all((out[i] - out[j]).abs().max() > 0.05 for i in range(4) for j in range(i))
    for i in range(4):
        torch.testing.assert_close(diff_augment(x[i : i + 1], numbers[i : i + 1])[0], out[i])


def test_gradient_reaches_images():
    """The composition is differentiable, and its gradient is finite and zero only under the box and outside."""
    x = images(4, 16, 16, torch.float32).requires_grad_()
    out = diff_augment(x, uniform(4))
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert gradient.isfinite().all()
    assert (gradient != 0).float().mean() > 0.9

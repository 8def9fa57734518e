"""FLOPs against closed forms, memory against what is held by hand."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.meter import Meter

KIB = 1024


def test_matrix_products_and_convolutions():
    with Meter() as meter:
        torch.ones(2, 3) @ torch.ones(3, 5)
        torch.nn.functional.conv2d(torch.ones(1, 2, 8, 8), torch.ones(4, 2, 3, 3), padding=1)
    assert meter.flops == 2 * (2 * 3 * 5 + 8 * 8 * 4 * 2 * 3 * 3)


def test_attention_on_a_cpu():
    """Forward: q k' and p v. Backward: both again with respect to two operands each, and q k' recomputed."""
    q = torch.randn(1, 2, 16, 8, requires_grad=True)
    product = 2 * 2 * 16 * 16 * 8
    with Meter() as meter:
        out = scaled_dot_product_attention(q, q, q)
        assert meter.flops == 2 * product
        out.sum().backward()
    assert meter.flops == (2 + 5) * product


def test_gradient_of_a_gradient_is_counted():
    """R1 takes one; torch's own counter stops there."""
    x = torch.randn(4, 3, requires_grad=True)
    weight = torch.randn(3, 3, requires_grad=True)
    with Meter() as meter:
        [gradient] = torch.autograd.grad((x @ weight).square().sum(), x, create_graph=True)
        assert meter.flops == 2 * 2 * 4 * 3 * 3
        gradient.square().sum().backward()
    assert meter.flops > 4 * 2 * 4 * 3 * 3


@pytest.mark.parametrize("fake", [False, True])
def test_memory_is_what_lives(fake):
    with FakeTensorMode() if fake else torch.no_grad():
        held = torch.empty(KIB)
        meter = Meter()
        meter.hold([held, held.view(2, -1)])  # the same memory
        assert meter.live == 4 * KIB
        with meter:
            a = torch.empty(2 * KIB)
            b = a[1:]  # a view: no memory of its own
            assert meter.live == 12 * KIB
            del a
            assert meter.live == 12 * KIB
            del b
            assert meter.live == 4 * KIB
            small = torch.empty(1)
            assert meter.live == 4 * KIB + 512  # as the allocator rounds
        assert meter.peak == 12 * KIB
        meter.reset()
        assert (meter.flops, meter.peak) == (0, meter.live)
        del small
        assert meter.live == 4 * KIB


def test_memory_of_a_backward_pass():
    """tanh keeps its output: two of them live while the third is made, and gradients come and go."""
    x = torch.ones(KIB, requires_grad=True)
    with Meter() as meter:
        y = x.tanh().tanh()
        assert meter.live == 2 * 4 * KIB
        y.sum().backward()
        del y
    assert meter.live == 4 * KIB  # x.grad
    assert meter.peak >= 3 * 4 * KIB

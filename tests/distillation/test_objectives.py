"""The losses against closed forms."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from distillation.objectives import (
    distillation_loss,
    distillation_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    r1_penalties,
)
from distillation.schedule import NoiseSchedule
from distillation.teacher import Teacher, TeacherConditions

ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
SCHEDULE = NoiseSchedule.from_alphas_cumprod(ALPHAS_CUMPROD, "epsilon")


def test_hinge_by_hand():
    """Two heads, two tokens: sum over heads of the mean over tokens."""
    real = torch.tensor([[[2.0, 0.5], [-1.0, 1.0]]])
    fake = torch.tensor([[[-2.0, 0.5], [0.0, -3.0]]])
    # head 0: mean(0, .5) + mean(0, 1.5) = 1; head 1: mean(2, 0) + mean(1, 0) = 1.5
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(2.5)
    # head 0: -mean(-2, .5) = .75; head 1: -mean(0, -3) = 1.5
    assert hinge_generator_loss(fake).item() == pytest.approx(2.25)


def test_losses_of_heads_on_maps_of_several_sizes():
    """Each head's mean is over its own tokens: a larger map weighs no more than a small one."""
    real = (torch.tensor([[2.0, 0.5], [0.0, 1.5]]), torch.tensor([[-1.0], [0.5]]))
    fake = (torch.tensor([[-2.0, 0.5], [-1.0, -1.0]]), torch.tensor([[0.0], [-3.0]]))
    # head 0: mean(0, .5, 1, 0) + mean(0, 1.5, 0, 0) = .75; head 1: mean(2, .5) + mean(1, 0) = 1.75
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(2.5)
    # head 0: -mean(-2, .5, -1, -1) = .875; head 1: -mean(0, -3) = 1.5
    assert hinge_generator_loss(fake).item() == pytest.approx(2.375)


def test_r1_of_a_quadratic_on_maps_of_several_sizes():
    """As below, with maps `(B, C_k, h_k, w_k)`."""
    features = (torch.randn(3, 2, 4, 6, requires_grad=True), torch.randn(3, 5, 2, 3, requires_grad=True))
    logits = tuple((0.5 * f.square()).sum(1).flatten(1) for f in features)
    expected = torch.stack([f.square().sum((1, 2, 3)).mean() for f in features])
    torch.testing.assert_close(r1_penalties(logits, features), expected)


def test_hinge_does_not_depend_on_the_batch_but_on_the_heads():
    real, fake = torch.randn(2, 4, 3, 5).unbind(0)
    once = hinge_discriminator_loss(real, fake)
    torch.testing.assert_close(hinge_discriminator_loss(real.repeat(2, 1, 1), fake.repeat(2, 1, 1)), once)
    torch.testing.assert_close(hinge_discriminator_loss(real.repeat(1, 2, 1), fake.repeat(1, 2, 1)), 2 * once)


def test_r1_of_a_quadratic():
    """D = sum a f^2 over two taps: the gradient is 2 a f, so R1 = sum (2 a f)^2, averaged over the batch."""
    features = tuple(torch.randn(3, 2, 4, requires_grad=True) for _ in range(2))
    logits = torch.stack([(0.5 * f.square()).sum(1) for f in features], dim=1)
    expected = sum(f.square().sum((1, 2)) for f in features).mean()
    torch.testing.assert_close(r1_penalties(logits, features).sum(), expected)


def test_r1_weight_gradient_against_finite_differences():
    """The double backward, checked without autograd: d R1 / d w numerically, in float64."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Tanh(), nn.Conv1d(4, 1, 1)).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64)

    def penalty():
        features = (x.clone().requires_grad_(),)
        return r1_penalties(head(features[0]), features).sum()

    penalty().backward()
    weight, h = head[0].weight, 1e-6
    with torch.no_grad():
        weight[1, 2] += h
        up = penalty_value(penalty)
        weight[1, 2] -= 2 * h
        down = penalty_value(penalty)
        weight[1, 2] += h
    assert weight.grad[1, 2].item() == pytest.approx((up - down) / (2 * h), rel=1e-5)


def penalty_value(penalty):
    with torch.enable_grad():
        return penalty().item()


def test_weights_c_of_t():
    t = torch.tensor([20, 500, 979])
    alpha, sigma = SCHEDULE.alphas[t], SCHEDULE.sigmas[t]
    torch.testing.assert_close(distillation_weight(SCHEDULE, t, "exponential"), alpha)
    torch.testing.assert_close(distillation_weight(SCHEDULE, t, "sds"), alpha / (2 * sigma) * sigma**2)
    torch.testing.assert_close(distillation_weight(SCHEDULE, t, "nfsd"), alpha / (2 * sigma) * sigma**2)
    assert distillation_weight(SCHEDULE, t, "uniform").tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="'none'"):
        distillation_weight(SCHEDULE, t, "none")


def test_distillation_loss_by_hand_and_target_gets_no_gradient():
    x = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 3.0]]]], requires_grad=True)
    target = torch.zeros(2, 1, 1, 2, requires_grad=True)
    loss = distillation_loss(x, target, torch.tensor([1.0, 0.5]))
    assert loss.item() == pytest.approx((1.0 * (1 + 4) / 2 + 0.5 * 9 / 2) / 2)
    loss.backward()
    assert target.grad is None


def test_sds_gradient_identity():
    """Appendix A: with c = alpha w / (2 sigma) the gradient of the distillation loss is w(t) (eps^ - eps) dx/dtheta.

    A small random network stands for the teacher and theta is the sample itself, so dx/dtheta is the identity. The
    loss averages over batch and elements, the identity is stated for the sum: hence the factor.
    """
    torch.manual_seed(0)
    unet = nn.Conv2d(4, 4, 3, padding=1)
    x = torch.randn(3, 4, 6, 6, requires_grad=True)
    eps, t = torch.randn(3, 4, 6, 6), torch.tensor([50, 500, 950])
    teacher = Teacher(lambda x_t, timestep: SimpleNamespace(sample=unet(x_t)), SCHEDULE)
    target = teacher.target(x, eps, t, TeacherConditions({}))
    distillation_loss(x, target, distillation_weight(SCHEDULE, t, "sds")).backward()
    with torch.no_grad():
        w = SCHEDULE.sigmas[t].square().view(-1, 1, 1, 1)
        expected = w * (unet(SCHEDULE.diffuse(x, eps, t)) - eps)
    torch.testing.assert_close(x.grad * x.numel(), expected, atol=2e-4, rtol=1e-3)

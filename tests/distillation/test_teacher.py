"""The teacher against closed forms: linear networks whose answers can be worked out by hand."""

from types import SimpleNamespace

import pytest
import torch

from distillation.schedule import NoiseSchedule
from distillation.teacher import Teacher, TeacherConditions, concatenate

ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
SCHEDULE = NoiseSchedule.from_alphas_cumprod(ALPHAS_CUMPROD, "epsilon")
X, EPS = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
T = torch.tensor([100, 400, 900])


class Network:
    """Answers eps = the condition's value, and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, timestep, value):
        self.calls += 1
        return SimpleNamespace(sample=value.expand_as(x))


def says(value):
    return {"value": torch.full((3, 1, 1, 1), float(value))}


def coefficients(t):
    return SCHEDULE.alphas[t].view(-1, 1, 1, 1), SCHEDULE.sigmas[t].view(-1, 1, 1, 1)


def test_perfect_teacher_returns_the_sample():
    """A teacher that knows the noise denoises x^_theta,t back to x^_theta."""
    teacher = Teacher(lambda x, timestep: SimpleNamespace(sample=EPS), SCHEDULE)
    torch.testing.assert_close(teacher.target(X, EPS, T, TeacherConditions({})), X, atol=1e-5, rtol=1e-5)


def test_target_of_a_constant_prediction():
    alpha, sigma = coefficients(T)
    target = Teacher(Network(), SCHEDULE).target(X, EPS, T, TeacherConditions(says(0.3)))
    torch.testing.assert_close(target, (alpha * X + sigma * EPS - sigma * 0.3) / alpha, atol=1e-5, rtol=1e-5)


def test_guidance_moves_away_from_the_unconditional_in_one_forward():
    network = Network()
    teacher = Teacher(network, SCHEDULE, guidance_scale=4.0)
    output = teacher.output(X, T, TeacherConditions(says(1.0), says(0.25)))
    torch.testing.assert_close(output, torch.full_like(X, 0.25 + 4 * 0.75))
    assert network.calls == 1


def test_no_gradient_and_no_graph_through_the_teacher():
    x = X.clone().requires_grad_()
    weight = torch.nn.Parameter(torch.ones(()))
    teacher = Teacher(lambda x, timestep: SimpleNamespace(sample=weight * x), SCHEDULE)
    assert not teacher.target(x, EPS, T, TeacherConditions({})).requires_grad


@pytest.mark.parametrize("steps", [2, 3])
def test_several_steps_are_ddim(steps):
    """Against the stock DDIM formula written out with the same timesteps, for a network that is linear in x."""
    teacher = Teacher(lambda x, timestep: SimpleNamespace(sample=0.4 * x), SCHEDULE, steps=steps)
    ours = teacher.target(X, EPS, torch.full((3,), 900), TeacherConditions({}))
    times = [900 * (steps - k) // steps for k in range(steps)]
    a = ALPHAS_CUMPROD.sqrt()
    x = a[900] * X.double() + (1 - a[900] ** 2).sqrt() * EPS.double()
    for now, following in zip(times, [*times[1:], None]):
        eps = 0.4 * x
        x0 = (x - (1 - a[now] ** 2).sqrt() * eps) / a[now]
        if following is not None:
            x = a[following] * x0 + (1 - a[following] ** 2).sqrt() * eps
    torch.testing.assert_close(ours.double(), x0, atol=1e-4, rtol=1e-4)


def test_nfsd_directions_and_one_forward():
    """d_D + 7.5 d_C by hand: below t = 200 the empty prompt's eps, above it minus the negative prompt's."""
    network = Network()
    teacher = Teacher(network, SCHEDULE, guidance_scale=7.5)
    target = teacher.nfsd_target(X, EPS, T, TeacherConditions(says(1.0), says(0.4), says(0.1)))
    alpha, sigma = coefficients(T)
    d_domain = torch.tensor([0.4, 0.3, 0.3]).view(-1, 1, 1, 1)
    torch.testing.assert_close(target, X - sigma / alpha * (d_domain + 7.5 * 0.6), atol=1e-4, rtol=1e-5)
    assert network.calls == 1


def test_conditions_concatenate_nested():
    a = {"x": torch.zeros(1, 2), "added": {"y": torch.zeros(1, 3)}}
    b = {"x": torch.ones(1, 2), "added": {"y": torch.ones(1, 3)}}
    joined = concatenate(a, b)
    assert joined["x"].tolist() == [[0, 0], [1, 1]]
    assert joined["added"]["y"].tolist() == [[0, 0, 0], [1, 1, 1]]

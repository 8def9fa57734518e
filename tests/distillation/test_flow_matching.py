"""The schedule of flow matching against closed forms and diffusers' own schedulers."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from distillation.objectives import distillation_loss, distillation_weight
from distillation.schedule import NoiseSchedule
from distillation.student import DEFAULT_STUDENT_TIMESTEPS, diffuse_student, student_sample
from distillation.teacher import Teacher, TeacherConditions

SHIFTS = (1.0, 3.0, 5.5)
X0, EPS, V = torch.randn(3, 4, 16, 6, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
T = torch.tensor([20, 400, 750, 979])


def answers(output):
    return lambda x, timestep: SimpleNamespace(sample=output)


@pytest.mark.parametrize("shift", SHIFTS)
def test_sigmas_and_times_are_those_of_the_stock_scheduler(shift):
    stock, ours = FlowMatchEulerDiscreteScheduler(shift=shift), NoiseSchedule.flow_matching(1000, shift)
    torch.testing.assert_close(ours.sigmas, stock.sigmas.flip(0), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.times, stock.timesteps.flip(0), atol=1e-3, rtol=1e-6)
    torch.testing.assert_close(ours.alphas + ours.sigmas, torch.ones(1000), atol=1e-7, rtol=0)


@pytest.mark.parametrize("shift", SHIFTS)
def test_student_timesteps_are_quarters_before_the_shift(shift):
    """{1/4, 1/2, 3/4, 1} by the formula; with shift 3 they are 0.5, 0.75, 0.9 and 1."""
    ours = NoiseSchedule.flow_matching(1000, shift).sigmas[list(DEFAULT_STUDENT_TIMESTEPS)]
    expected = [shift * u / (1 + (shift - 1) * u) for u in (0.25, 0.5, 0.75, 1.0)]
    torch.testing.assert_close(ours, torch.tensor(expected))
    if shift == 3.0:
        assert ours.tolist() == pytest.approx([0.5, 0.75, 0.9, 1.0])


@pytest.mark.parametrize("shift", SHIFTS)
def test_diffusion_is_the_stock_schedulers_scale_noise(shift):
    stock, ours = FlowMatchEulerDiscreteScheduler(shift=shift), NoiseSchedule.flow_matching(1000, shift)
    theirs = stock.scale_noise(X0, stock.timesteps[999 - T], EPS)
    torch.testing.assert_close(ours.diffuse(X0, EPS, T), theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shift", SHIFTS)
def test_conversions_invert_the_forward_process(shift):
    """x0 and eps come back from the output of a perfect network, v = eps - x0."""
    schedule = NoiseSchedule.flow_matching(1000, shift)
    x_t = schedule.diffuse(X0, EPS, T)
    torch.testing.assert_close(schedule.x0(EPS - X0, x_t, T), X0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(schedule.eps(EPS - X0, x_t, T), EPS, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("s", "following"), [(999, 499), (999, 749), (749, 499), (249, None)])
def test_denoising_and_diffusing_again_is_one_euler_step(shift, s, following):
    """An independent reference: a step of FlowMatchEulerDiscreteScheduler from one student timestep to the next."""
    schedule, stock = NoiseSchedule.flow_matching(1000, shift), FlowMatchEulerDiscreteScheduler(shift=shift)
    stock.set_timesteps(sigmas=[(s + 1) / 1000, *([] if following is None else [(following + 1) / 1000])])
    theirs = stock.step(V, stock.timesteps[0], EPS).prev_sample
    t = torch.full((4,), s)
    x0 = schedule.x0(V, EPS, t)
    if following is not None:
        x0 = schedule.diffuse(x0, schedule.eps(V, EPS, t), torch.full((4,), following))
    torch.testing.assert_close(x0, theirs, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("shift", SHIFTS)
def test_last_index_is_pure_noise_by_the_schedule_itself(shift):
    schedule, last = NoiseSchedule.flow_matching(1000, shift), torch.full((4,), 999)
    assert (schedule.sigmas[-1], schedule.alphas[-1]) == (1, 0)
    assert torch.equal(schedule.diffuse(X0, EPS, last), EPS)
    assert torch.equal(diffuse_student(schedule, X0, EPS, last), EPS)
    assert torch.equal(schedule.eps(V, EPS, last), EPS)


def test_network_is_given_a_thousand_sigma():
    """Student and teacher alike; a teacher with guidance too, whose batch is doubled."""
    schedule, seen = NoiseSchedule.flow_matching(1000, 3.0), []

    def network(x, timestep, scale):
        seen.append(timestep)
        return SimpleNamespace(sample=scale * x)

    scale = {"scale": torch.ones(4, 1, 1, 1)}
    expected = torch.tensor([1000 * 3 * u / (1 + 2 * u) for u in ((t + 1) / 1000 for t in T.tolist())])
    x0 = student_sample(network, schedule, EPS, T, scale)
    torch.testing.assert_close(x0, EPS - expected.view(4, 1, 1, 1) / 1000 * EPS)
    Teacher(network, schedule).output(EPS, T, TeacherConditions(scale))
    Teacher(network, schedule, guidance_scale=3.0).output(EPS, T, TeacherConditions(scale, scale))
    Teacher(network, schedule, guidance_scale=7.5).nfsd_target(EPS, V, T, TeacherConditions(scale, scale, scale))
    for timestep, count in zip(seen, (1, 1, 2, 3)):
        torch.testing.assert_close(timestep, expected.repeat(count))


@pytest.mark.parametrize("steps", [1, 3])
def test_teacher_target_of_a_perfect_network_is_the_sample(steps):
    """The ODE of a perfect network is a straight line, so several steps end where one does."""
    schedule = NoiseSchedule.flow_matching(1000, 3.0)
    teacher = Teacher(answers(EPS - X0), schedule, steps=steps)
    torch.testing.assert_close(teacher.target(X0, EPS, T, TeacherConditions({})), X0, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shift", SHIFTS)
def test_sds_gradient_identity(shift):
    """With c = alpha w / (2 sigma) and w = sigma^2 the gradient is w(t) (eps^ - eps), as for diffusion models."""
    schedule, x = NoiseSchedule.flow_matching(1000, shift), X0.clone().requires_grad_()
    target = Teacher(answers(V), schedule).target(x, EPS, T, TeacherConditions({}))
    distillation_loss(x, target, distillation_weight(schedule, T, "sds")).backward()
    x_t = schedule.diffuse(X0, EPS, T)
    expected = schedule.sigmas[T].square().view(4, 1, 1, 1) * (x_t + schedule.alphas[T].view(4, 1, 1, 1) * V - EPS)
    torch.testing.assert_close(x.grad * x.numel(), expected, atol=1e-4, rtol=1e-3)


def test_exponential_weight_is_one_minus_sigma():
    schedule = NoiseSchedule.flow_matching(1000, 3.0)
    torch.testing.assert_close(distillation_weight(schedule, T, "exponential"), 1 - schedule.sigmas[T])
    assert distillation_weight(schedule, torch.tensor([999]), "exponential") == 0


def test_nfsd_target_by_hand():
    """eps^ = x_t + (1 - sigma) v of constant predictions: their differences are alpha times those of v."""
    schedule = NoiseSchedule.flow_matching(1000, 3.0)
    network = lambda x, timestep, value: SimpleNamespace(sample=value.expand_as(x))  # noqa: E731
    says = lambda value: {"value": torch.full((4, 1, 1, 1), value)}  # noqa: E731
    teacher = Teacher(network, schedule, guidance_scale=7.5)
    target = teacher.nfsd_target(X0, EPS, T, TeacherConditions(says(1.0), says(0.4), says(0.1)))
    alpha, sigma = (values[T].view(4, 1, 1, 1) for values in (schedule.alphas, schedule.sigmas))
    d_domain = torch.where(T.view(4, 1, 1, 1) < 200, schedule.diffuse(X0, EPS, T) + alpha * 0.4, alpha * 0.3)
    torch.testing.assert_close(target, X0 - sigma / alpha * (d_domain + 7.5 * alpha * 0.6), atol=1e-3, rtol=1e-4)


def test_shift_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="above 0, got 0"):
        NoiseSchedule.flow_matching(1000, 0)

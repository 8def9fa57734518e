"""Figures of a run's health against closed forms and against the losses they belong to."""

import pytest
import torch

from distillation.diagnostics import accuracy_by_timestep, gradient_norms
from tests.support.runs import make_batches, prepare_run


def test_gradient_norms_are_those_of_the_whole_backward_and_leave_the_graph():
    weight = torch.tensor([3.0], requires_grad=True)
    x = weight * torch.tensor([1.0, 2.0])
    losses = {"square": 0.5 * x.square().sum(), "sum": 4 * x.sum()}
    norms = gradient_norms(losses, x, scale=128.0)
    assert norms["square"].item() == pytest.approx((9 + 36) ** 0.5)
    assert norms["sum"].item() == pytest.approx(4 * 2**0.5)
    assert weight.grad is None
    sum(losses.values()).backward()
    assert weight.grad.item() == pytest.approx(3 * 5 + 4 * 3)


def test_scale_keeps_what_half_precision_would_lose():
    x = torch.ones(4, requires_grad=True)
    loss = (x.half() * 1e-4).float().sum() * 1e-6
    assert gradient_norms({"l": loss}, x)["l"] == 0
    assert gradient_norms({"l": loss}, x, scale=2.0**16)["l"].item() == pytest.approx(2e-10, rel=0.01)


def test_accuracy_by_timestep_counts_the_right_signs_of_its_samples():
    s = torch.tensor([999, 249, 999])
    logits = torch.tensor([[[-1.0, 1.0], [-1.0, -1.0]], [[-1.0, -1.0], [-1.0, -1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    fake = accuracy_by_timestep(logits, False, s, (249, 499, 999))
    assert fake[249] == 1
    assert fake[999] == pytest.approx(3 / 8)
    assert fake[499].isnan()
    assert accuracy_by_timestep(logits, True, s, (999,))[999] == pytest.approx(5 / 8)


@pytest.mark.parametrize("space", ["pixel", "latent"])
def test_losses_report_how_strongly_each_pulls_at_the_sample(world, tmp_path, space):
    """In proportion to its weight, without any parameter's gradient and without a backward pass of the UNet."""
    ratios = []
    for weight in (2.5, 5.0):
        flags = ("--distillation_space", space, "--distillation_weight", weight)
        prepared = prepare_run(world, tmp_path / "out", *flags)
        batch = make_batches(prepared)[0]
        sample = prepared.players.losses.sample(batch)
        losses = prepared.players.losses.student_losses(batch, sample)
        prepared.players.student.conv_out.register_full_backward_hook(lambda *_: pytest.fail("the UNet ran backward"))
        values = prepared.players.losses.gradient_norms(sample, losses, scale=4.0)
        assert all(p.grad is None for p in prepared.players.student.parameters())
        ratios.append(values["gradient_at_sample/ratio"].item())
    at = sample.x if space == "pixel" else sample.z
    (expected,) = torch.autograd.grad(5.0 * losses["loss/distillation"], at, retain_graph=True)
    assert values["gradient_at_sample/distillation"].item() == pytest.approx(expected.norm().item(), rel=1e-4)
    assert ratios[0] > 0
    assert ratios[0] == pytest.approx(2 * ratios[1], rel=1e-3)


def test_discriminator_reports_each_tap_and_timestep(world, tmp_path):
    prepared = prepare_run(world, tmp_path / "out", "--r1_gamma", 0.5)
    batch = make_batches(prepared)[0]
    values = prepared.players.losses.discriminator_losses(batch, prepared.players.losses.sample(batch))
    taps = [values[f"discriminator/r1_tap_{k}"].item() for k in range(5)]
    assert min(taps) > 0
    assert sum(taps) == pytest.approx(values["loss/r1"].item())
    shares = torch.stack([values[f"discriminator/accuracy_fake_s{s}"] for s in (249, 499, 749, 999)])
    counts = torch.tensor([(batch.noise.s == s).sum() for s in (249, 499, 749, 999)])
    assert torch.equal(shares.isnan(), counts == 0)
    assert (shares.nan_to_num() * counts).sum() / 4 == pytest.approx(values["discriminator/accuracy_fake"].item())

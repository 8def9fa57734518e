"""The guard of an update, for fused AdamW and for bitsandbytes' 8-bit one."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.support.runs import options_of
from training.optimization import (
    GradientScaleError,
    Updater,
    discriminator_optimizer,
    learning_rate_schedule,
    student_optimizer,
)
from training.options.derived import learning_rate

FLAGS = ("--pretrained_teacher_model", "x", "--learning_rate", 0.1, "--discriminator_learning_rate", 0.2,
         "--adam_weight_decay", 0, "--lr_scheduler", "linear", "--lr_warmup_steps", 0)  # fmt: skip


def make_updater(eight_bit=False, max_grad_norm=1.0, total_steps=10):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    network = nn.Linear(64, 64)
    options = options_of(*FLAGS, *["--use_8bit_adam"] * eight_bit)
    optimizer = student_optimizer(network.parameters(), options, scale=1)
    schedule = learning_rate_schedule(optimizer, options.optimization, total_steps)
    return network, Updater(accelerator, accelerator.prepare(optimizer), schedule, max_grad_norm)


def test_schedule_of_a_network_with_several_updates_is_counted_in_iterations():
    """Three updates an iteration: at each iteration's end the rate is that of a network with one."""
    rates = {}
    for updates in (1, 3):
        options = options_of(*FLAGS, "--lr_scheduler", "cosine", "--lr_warmup_steps", 2)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = learning_rate_schedule(optimizer, options.optimization, total_steps=8, updates=updates)
        rates[updates] = []
        for _ in range(8):
            for _ in range(updates):
                optimizer.step()
                schedule.step()
            rates[updates].append(schedule.get_last_lr()[0])
    assert rates[3] == pytest.approx(rates[1])
    assert rates[1][1] == max(rates[1])
    assert rates[1][-1] == pytest.approx(0)


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_non_finite_step_is_skipped_and_the_next_is_taken(eight_bit, bad):
    """Also where the loss is infinite and the gradients came out finite."""
    network, updater = make_updater(eight_bit)
    before = network.weight.detach().clone()
    network(torch.ones(2, 64)).sum().backward()
    if bad == "gradient":
        network.weight.grad[3, 3] = float("inf")
    _, skipped = updater.update(torch.tensor(float("inf") if bad == "loss" else 1.0))
    assert skipped == 1
    assert torch.equal(network.weight, before)
    assert network.weight.grad is None
    loss = network(torch.ones(2, 64)).sum()
    loss.backward()
    _, skipped = updater.update(loss)
    assert skipped == 0
    assert not torch.equal(network.weight, before)
    assert network.weight.isfinite().all()


@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_non_finite_loss_at_another_process_skips_the_step_here(monkeypatch, eight_bit):
    """The loss and the gradients of this process are finite; the mean of the losses over processes is not."""
    network, updater = make_updater(eight_bit)
    before = network.weight.detach().clone()
    loss = network(torch.ones(2, 64)).sum()
    loss.backward()
    asked = []

    def reduce(tensor, reduction):
        asked.append(reduction)
        return (tensor + float("nan")) / 2

    monkeypatch.setattr(updater.accelerator, "reduce", reduce)
    _, skipped = updater.update(loss)
    assert skipped == 1
    assert asked == ["mean"]
    assert torch.equal(network.weight, before)


def test_norm_is_that_before_the_clip_and_the_rate_moves_once():
    network, updater = make_updater(max_grad_norm=0.5)
    loss = (network(torch.ones(1, 64)) * 3).sum()
    loss.backward()
    norm, _ = updater.update(loss)
    # Each of 64 rows has 64 weight gradients and one bias gradient of 3.
    assert norm.item() == pytest.approx(3 * (64 * 65) ** 0.5, rel=1e-5)
    assert updater.schedule.get_last_lr() == pytest.approx([0.09])


@pytest.mark.parametrize(("max_grad_norm", "clipped"), [(0.5, 1.0), (1e6, 0.0), (float("inf"), 0.0)])
def test_clip_is_reported_where_the_norm_exceeds_the_limit(max_grad_norm, clipped):
    network, updater = make_updater(max_grad_norm=max_grad_norm)
    loss = network(torch.ones(1, 64)).sum()
    loss.backward()
    norm, skipped = updater.update(loss)
    assert skipped == 0
    assert updater.figures["clipped"] == clipped == float(norm > max_grad_norm)


def half_updater(scale):
    """An updater whose gradients are scaled as in fp16."""
    network, updater = make_updater(total_steps=1000)
    updater.accelerator.state._mixed_precision, updater.accelerator.native_amp = "fp16", True
    updater.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return network, updater


def update_with(network, updater, gradient, times):
    """Losses are finite all the while; the gradients are `gradient`."""
    for _ in range(times):
        updater.accelerator.scaler.scale(torch.ones(1))  # as a backward would
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        updater.update(torch.tensor(1.0))


def test_scaler_may_search_from_its_first_scale_down_to_one():
    """16 overflows in a row from 2**16 and then finite gradients: a run that goes on."""
    network, updater = half_updater(2.0**16)
    update_with(network, updater, float("inf"), 16)
    before = network.weight.detach().clone()
    update_with(network, updater, 1.0, 14)
    assert updater.accelerator.scaler.get_scale() == 1.0
    assert not torch.equal(network.weight, before)


@pytest.mark.parametrize("scale", [2.0**16, 2.0**100])
def test_scaler_that_finds_no_scale_ends_the_run(scale):
    """Below a scale of 1, and after 20 overflows in a row however large the scale is."""
    network, updater = half_updater(scale)
    before = network.weight.detach().clone()
    with pytest.raises(GradientScaleError, match=r"in up to (20|30) updates in a row.*--mixed_precision bf16 or no"):
        update_with(network, updater, float("nan"), 40)
    assert torch.equal(network.weight, before)


def test_an_adapter_has_a_higher_rate_by_default():
    required = ("--pretrained_teacher_model", "x")
    assert learning_rate(options_of(*required)) == 1e-5
    assert learning_rate(options_of(*required, "--use_lora")) == 1e-4
    assert learning_rate(options_of(*required, "--use_lora", "--learning_rate", 3e-5)) == 3e-5


def test_discriminator_optimizer_is_adam_without_decay():
    """Against torch's own Adam, three steps."""
    weights = [nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2)]
    ours = discriminator_optimizer([weights[0]], options_of(*FLAGS), scale=2)
    theirs = torch.optim.Adam([weights[1]], lr=0.4, betas=(0.0, 0.99), eps=1e-8)
    for _ in range(3):
        for weight, optimizer in zip(weights, (ours, theirs)):
            weight.grad = weight.detach() ** 3 + 0.1
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1])

"""The fp16 path: one gradient scaler serves two optimizers, strictly in sequence.

accelerate grants fp16 on a GPU alone. Autocast and torch's scaler have it on a CPU as well: they are put in place here,
and everything else is the run's own.
"""

import pytest
import torch
from accelerate import Accelerator

from tests.trainers import make_batches, make_trainer
from training import accelerator as setup
from training.iteration import train_iteration
from training.optimization import GradientScaleError


@pytest.fixture
def half_trainer(world, tmp_path, monkeypatch):
    """Makes a trainer that runs in fp16 with a scaler that starts at `scale`."""

    def make(scale, *extra):
        def accelerator(_):
            made = Accelerator(cpu=True)
            made.state._mixed_precision, made.native_amp = "fp16", True
            made.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            return made

        monkeypatch.setattr(setup, "make_accelerator", accelerator)
        return make_trainer(world, tmp_path / "half", *extra)

    return make


def train(trainer, iterations=2):
    """What the iterations changed by, per network; and which of them were skipped."""
    state = trainer.state
    networks = {"student": state.student, "discriminator": state.heads}
    before = {name: [p.detach().clone() for p in network.parameters()] for name, network in networks.items()}
    skips = []
    for batch in make_batches(trainer, count=iterations):
        skips.append(train_iteration(trainer.losses, [batch], state.updaters, trainer.accelerator)[1].item())
    moved = {
        name: torch.cat([(p - b).flatten() for p, b in zip(network.parameters(), before[name])]).detach()
        for name, network in networks.items()
    }
    return moved, skips


def train_on(trainer, batches):
    for batch in batches:
        train_iteration(trainer.losses, [batch], trainer.state.updaters, trainer.accelerator)


@pytest.mark.parametrize("extra", [(), ("--use_8bit_adam",), ("--use_lora", "--lora_rank", 2)])
def test_both_networks_move_as_in_float32(world, tmp_path, half_trainer, extra):
    """A scaler that was left on, or taken off twice, would give one of the two an update thousands of times off."""
    flags = (*extra, "--adam_epsilon", 1e-3)  # with Adam's tiny one, an update does not depend on the gradient's size
    expected, _ = train(make_trainer(world, tmp_path / "whole", *flags))
    half = half_trainer(2.0**10, *flags)
    assert half.networks.teacher.dtype == torch.float16
    moved, skips = train(half)
    assert skips == [0, 0]
    for name in expected:
        cosine = torch.nn.functional.cosine_similarity(moved[name], expected[name], dim=0)
        assert cosine > 0.97, name
        assert moved[name].norm() == pytest.approx(expected[name].norm().item(), rel=0.05), name


@pytest.mark.parametrize("extra", [(), ("--use_8bit_adam",)])
def test_overflow_lowers_the_scale_and_leaves_the_student_alone(half_trainer, extra):
    """It is how the scaler finds its scale, not a fault of the run: nothing is counted as skipped. The heads compute in
    float32, where this scale is no overflow: they take their step."""
    trainer = half_trainer(2.0**60, *extra)
    moved, skips = train(trainer, iterations=1)
    assert skips == [0]
    assert not moved["student"].any()
    assert moved["discriminator"].any()
    assert moved["discriminator"].isfinite().all()
    assert trainer.accelerator.scaler.get_scale() == 2.0**59


def test_scale_survives_a_checkpoint(half_trainer):
    trainer = half_trainer(2.0**7)
    train(trainer, iterations=1)
    _, state = trainer.state.save(trainer.args, trainer.accelerator)
    other = half_trainer(2.0**9)
    other.accelerator.scaler.load_state_dict(state["scaler"])
    assert other.accelerator.scaler.get_scale() == 2.0**7


@pytest.mark.parametrize(("player", "extra"), [("student", ("--use_8bit_adam",)), ("discriminator", ())])
def test_gradients_that_stay_nan_end_the_run_before_the_scale_is_gone(half_trainer, player, extra):
    """A finite loss with NaN gradients: no weight is ever touched, and the error names the way out."""
    trainer = half_trainer(2.0**4, *extra)
    network = trainer.state.student if player == "student" else trainer.state.heads
    next(p for p in network.parameters() if p.requires_grad).register_hook(lambda g: torch.full_like(g, float("nan")))
    before = [p.detach().clone() for p in network.parameters()]
    batches = make_batches(trainer) * 10
    with pytest.raises(GradientScaleError, match=r"the gradient scale is down to .*; no weight .* bf16"):
        train_on(trainer, batches)
    assert trainer.accelerator.scaler.get_scale() > 2.0**-10
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before))
    assert all(p.isfinite().all() for n in (trainer.state.student, trainer.state.heads) for p in n.parameters())


def test_scale_of_zero_reaches_no_weight(half_trainer):
    """The scaler finds nothing wrong with the zeros that such a scale gives, and divides them by it."""
    trainer = half_trainer(2.0**7)
    train(trainer, iterations=1)
    trainer.accelerator.scaler._scale.zero_()
    moved, _ = train(trainer, iterations=1)
    assert not any(m.any() for m in moved.values())


def test_search_for_a_scale_is_counted_per_player(half_trainer):
    """From a scale that is too large for the student; the heads are computed in float32 and never overflow there."""
    trainer = half_trainer(2.0**60)
    (batch,) = make_batches(trainer)
    train_iteration(trainer.losses, [batch], trainer.state.updaters, trainer.accelerator)
    figures = {name: updater.figures for name, updater in trainer.state.updaters.items()}
    assert figures["student"]["overflowed"] == 1
    assert figures["discriminator"]["overflowed"] == 0
    assert figures["student"]["scale"] == 2.0**59


def test_overflow_of_the_discriminator_lowers_the_scale_before_the_student_uses_it(half_trainer, monkeypatch):
    trainer = half_trainer(2.0**10)
    parameter = next(trainer.state.heads.parameters())
    handle = parameter.register_hook(lambda g: torch.full_like(g, float("inf")))
    scales, backward = [], trainer.accelerator.backward

    def recorded(loss):
        scales.append(trainer.accelerator.scaler.get_scale())
        backward(loss)

    monkeypatch.setattr(trainer.accelerator, "backward", recorded)
    moved, _ = train(trainer, iterations=1)
    handle.remove()
    assert scales == [2.0**10, 2.0**9]
    assert not moved["discriminator"].any()
    assert moved["student"].any()

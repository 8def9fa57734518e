"""The fp16 path: one gradient scaler serves two optimizers, strictly in sequence.

accelerate grants fp16 on a GPU alone. Autocast and torch's scaler have it on a CPU as well: they are put in place here,
and everything else is the run's own.
"""

import pytest
import torch
from accelerate import Accelerator

from tests.support import runs
from tests.support.runs import make_batches, prepare_run
from train_add import iteration
from training.optimization import GradientScaleError
from training.run.state import pack_run


@pytest.fixture
def prepare_half(world, tmp_path, monkeypatch):
    """Prepares a run in fp16 with a scaler that starts at `scale`."""

    def make(scale, *extra):
        def accelerator(_):
            made = Accelerator(cpu=True)
            made.state._mixed_precision, made.native_amp = "fp16", True
            made.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            return made

        monkeypatch.setattr(runs, "make_accelerator", accelerator)
        return prepare_run(world, tmp_path / "half", *extra)

    return make


def train(prepared, iterations=2):
    """What the iterations changed by, per network; and which of them were skipped."""
    networks = {"student": prepared.players.student, "discriminator": prepared.players.heads}
    before = {name: [p.detach().clone() for p in network.parameters()] for name, network in networks.items()}
    skips = []
    for batch in make_batches(prepared, count=iterations):
        skips.append(iteration(prepared.players, [batch])[1].item())
    moved = {
        name: torch.cat([(p - b).flatten() for p, b in zip(network.parameters(), before[name])]).detach()
        for name, network in networks.items()
    }
    return moved, skips


def train_on(prepared, batches):
    for batch in batches:
        iteration(prepared.players, [batch])


@pytest.mark.parametrize("extra", [(), ("--use_8bit_adam",), ("--use_lora", "--lora_rank", 2)])
def test_both_networks_move_as_in_float32(world, tmp_path, prepare_half, extra):
    """A scaler that was left on, or taken off twice, would give one of the two an update thousands of times off."""
    flags = (*extra, "--adam_epsilon", 1e-3)  # with Adam's tiny one, an update does not depend on the gradient's size
    expected, _ = train(prepare_run(world, tmp_path / "whole", *flags))
    half = prepare_half(2.0**10, *flags)
    assert half.networks.teacher.dtype == torch.float16
    moved, skips = train(half)
    assert skips == [0, 0]
    for name in expected:
        cosine = torch.nn.functional.cosine_similarity(moved[name], expected[name], dim=0)
        assert cosine > 0.97, name
        assert moved[name].norm() == pytest.approx(expected[name].norm().item(), rel=0.05), name


@pytest.mark.parametrize("extra", [(), ("--use_8bit_adam",)])
def test_overflow_lowers_the_scale_and_leaves_the_student_alone(prepare_half, extra):
    """It is how the scaler finds its scale, not a fault of the run: nothing is counted as skipped. The heads compute in
    float32, where this scale is no overflow: they take their step."""
    prepared = prepare_half(2.0**60, *extra)
    moved, skips = train(prepared, iterations=1)
    assert skips == [0]
    assert not moved["student"].any()
    assert moved["discriminator"].any()
    assert moved["discriminator"].isfinite().all()
    assert prepared.accelerator.scaler.get_scale() == 2.0**59


def test_scale_survives_a_checkpoint(prepare_half):
    prepared = prepare_half(2.0**7)
    train(prepared, iterations=1)
    _, state = pack_run(prepared.players, prepared.state, prepared.arguments, prepared.accelerator)
    other = prepare_half(2.0**9)
    other.accelerator.scaler.load_state_dict(state["scaler"])
    assert other.accelerator.scaler.get_scale() == 2.0**7


@pytest.mark.parametrize(("player", "extra"), [("student", ("--use_8bit_adam",)), ("discriminator", ())])
def test_gradients_that_stay_nan_end_the_run_before_the_scale_is_gone(prepare_half, player, extra):
    """A finite loss with NaN gradients: no weight is ever touched, and the error names the way out."""
    prepared = prepare_half(2.0**4, *extra)
    network = prepared.players.student if player == "student" else prepared.players.heads
    next(p for p in network.parameters() if p.requires_grad).register_hook(lambda g: torch.full_like(g, float("nan")))
    before = [p.detach().clone() for p in network.parameters()]
    batches = make_batches(prepared) * 10
    with pytest.raises(GradientScaleError, match=r"the gradient scale has fallen to .*; these updates .* bf16"):
        train_on(prepared, batches)
    assert prepared.accelerator.scaler.get_scale() > 2.0**-10
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before))
    assert all(p.isfinite().all() for n in (prepared.players.student, prepared.players.heads) for p in n.parameters())


def test_scale_of_zero_reaches_no_weight(prepare_half):
    """The scaler finds nothing wrong with the zeros that such a scale gives, and divides them by it."""
    prepared = prepare_half(2.0**7)
    train(prepared, iterations=1)
    prepared.accelerator.scaler._scale.zero_()
    moved, _ = train(prepared, iterations=1)
    assert not any(m.any() for m in moved.values())


def test_search_for_a_scale_is_counted_per_player(prepare_half):
    """From a scale that is too large for the student; the heads are computed in float32 and never overflow there."""
    prepared = prepare_half(2.0**60)
    (batch,) = make_batches(prepared)
    iteration(prepared.players, [batch])
    figures = {name: updater.figures for name, updater in prepared.players.updaters.items()}
    assert figures["student"]["overflowed"] == 1
    assert figures["discriminator"]["overflowed"] == 0
    assert figures["student"]["scale"] == 2.0**59


def test_overflow_of_the_discriminator_lowers_the_scale_before_the_student_uses_it(prepare_half, monkeypatch):
    prepared = prepare_half(2.0**10)
    parameter = next(prepared.players.heads.parameters())
    handle = parameter.register_hook(lambda g: torch.full_like(g, float("inf")))
    scales, backward = [], prepared.accelerator.backward

    def recorded(loss):
        scales.append(prepared.accelerator.scaler.get_scale())
        backward(loss)

    monkeypatch.setattr(prepared.accelerator, "backward", recorded)
    moved, _ = train(prepared, iterations=1)
    handle.remove()
    assert scales == [2.0**10, 2.0**9]
    assert not moved["discriminator"].any()
    assert moved["student"].any()

"""One iteration on small real networks: what it computes, what it moves and what it must leave alone."""

import pytest
import torch

from distillation.losses import frozen
from tests.support.runs import digest, make_batches, prepare_run
from train_add import iteration


def gradients(module):
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(
        x is y is None or (x is not None and y is not None and torch.equal(x, y))
        for x, y in zip(a.values(), b.values())
    )


@pytest.mark.parametrize("prediction", ["world", "v_world"])
def test_adversarial_gradient_reaches_the_student_through_decoder_and_vit(prediction, request, tmp_path):
    """With L_adv alone the only way to the student's weights leads through F and the decoder."""
    prepared = prepare_run(request.getfixturevalue(prediction), tmp_path / "out", "--distillation_weight", 0)
    batch = make_batches(prepared)[0]
    prepared.players.losses.student_losses(batch, prepared.players.losses.sample(batch))["total"].backward()
    missing = [
        n for n, p in prepared.players.student.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    # attn keys see one softmax row each at initialization; every convolution must be reached
    assert [n for n in missing if "conv" in n] == []
    for network in (
        prepared.family.vae,
        prepared.players.losses.discriminator.feature_network,
        prepared.family.text_encoder,
    ):
        assert all(p.grad is None for p in network.parameters())


def test_discriminator_losses_do_not_touch_the_student(world, tmp_path):
    prepared = prepare_run(world, tmp_path / "out")
    batch = make_batches(prepared)[0]
    sample = prepared.players.losses.sample(batch)
    prepared.players.losses.discriminator_losses(batch, sample)["total"].backward()
    assert all(p.grad is None for p in prepared.players.student.parameters())
    assert all(p.grad is not None for p in prepared.players.heads.parameters())


def test_student_step_leaves_the_discriminator_as_it_was(world, tmp_path):
    """Weights, spectral norm's buffers, gradients, mode and trainability."""
    prepared = prepare_run(world, tmp_path / "out")
    batch = make_batches(prepared)[0]
    heads = prepared.players.heads
    sample = prepared.players.losses.sample(batch)
    prepared.players.losses.discriminator_losses(batch, sample)["total"].backward()
    before, grads = digest(heads), gradients(heads)
    prepared.players.losses.student_losses(batch, sample)["total"].backward()
    assert digest(heads) == before
    assert same(gradients(heads), grads)
    assert heads.training
    assert all(p.requires_grad for p in heads.parameters())


def test_discriminator_step_does_move_spectral_norm_buffers(world, tmp_path):
    """The check above would also pass if nothing ever moved them."""
    prepared = prepare_run(world, tmp_path / "out")
    batch = make_batches(prepared)[0]
    before = digest(prepared.players.heads)
    prepared.players.losses.discriminator_losses(batch, prepared.players.losses.sample(batch))
    assert digest(prepared.players.heads) != before


def test_frozen_restores_only_what_it_froze():
    module = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    module[0].requires_grad_(False)
    with frozen(module) as inside:
        assert not inside.training
        assert not any(p.requires_grad for p in inside.parameters())
    assert module.training
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]


def test_teacher_and_feature_network_never_change_and_both_players_do(world, tmp_path):
    prepared = prepare_run(world, tmp_path / "out")
    still = [
        prepared.networks.teacher,
        prepared.family.vae,
        prepared.family.text_encoder,
        prepared.players.losses.discriminator.feature_network,
    ]
    moving = [prepared.players.student, prepared.players.heads]
    before = [digest(m) for m in (*still, *moving)]
    for batch in make_batches(prepared, count=2):
        iteration(prepared.players, [batch])
    after = [digest(m) for m in (*still, *moving)]
    assert after[: len(still)] == before[: len(still)]
    assert all(a != b for a, b in zip(after[len(still) :], before[len(still) :]))


def test_one_forward_one_decode_an_iteration(world, tmp_path):
    """Latent distillation: the student runs once and the decoder once, shared by both steps; the teacher once."""
    prepared = prepare_run(world, tmp_path / "out", "--distillation_space", "latent")
    calls = {"student": 0, "teacher": 0, "decoder": 0}
    for name, module in (
        ("student", prepared.players.student),
        ("teacher", prepared.networks.teacher),
        ("decoder", prepared.family.vae.decoder),
    ):
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    iteration(prepared.players, make_batches(prepared))
    assert calls == {"student": 1, "teacher": 1, "decoder": 1}


@pytest.mark.parametrize("flags", [(), ("--decode_crop_size", 16, "--decode_crop_halo", 1)], ids=["whole", "crop"])
def test_reconstructed_real_images_have_been_through_the_autoencoder(world, tmp_path, flags):
    """D sees decode(z0), z0 the very latent that the student's input is made of, with the generated image's window."""
    prepared = prepare_run(world, tmp_path / "out", "--reconstruct_real", *flags)
    batch = make_batches(prepared)[0]
    (mean, std), noise, latents = batch.z0_moments, batch.noise, prepared.networks.latents
    sample = prepared.players.losses.sample(batch)
    with torch.no_grad():
        images = latents.decode(mean + std * noise.eps_posterior, batch.decode_window)
        expected = prepared.players.losses.features(images, noise.augment_real, batch)
    assert images.shape == sample.x.shape
    assert all(torch.equal(a, b) for a, b in zip(sample.real, expected))
    assert not any(f.requires_grad for f in sample.real)
    plain = prepare_run(world, tmp_path / "out", *flags)
    assert not any(torch.equal(a, b) for a, b in zip(plain.players.losses.sample(batch).real, expected))


def test_student_is_judged_by_the_updated_discriminator(world, tmp_path):
    """Strictly in sequence: L_adv in an iteration comes from the heads after their step."""
    prepared = prepare_run(world, tmp_path / "out", "--discriminator_learning_rate", 1e-2)
    batch = make_batches(prepared)[0]
    with torch.no_grad():
        before = prepared.players.losses.student_losses(batch, prepared.players.losses.sample(batch))[
            "loss/adversarial"
        ]
    frozen_student = prepared.players.student.requires_grad_(True)
    values, _ = iteration(prepared.players, [batch])
    assert frozen_student is prepared.players.student
    assert abs(values["loss/adversarial"].item() - before.item()) > 1e-4


def test_accumulated_batch_is_the_same_batch(world, tmp_path, monkeypatch):
    """4 x batch 1 moves both players as batch 4 does (reliability 29), batch statistics aside."""
    monkeypatch.setattr("discriminator.heads.virtual_batch_norm", lambda x, weight, bias, *a, **k: x)
    # Spectral norm's power iteration runs once a forward, so four forwards would see four estimates.
    extra = ("--learning_rate", 1e-4, "--discriminator_learning_rate", 1e-4, "--max_grad_norm", 1e9)
    results, norms = [], []
    for batch_size, count in ((4, 1), (1, 4)):
        prepared = prepare_run(world, tmp_path / "out", *extra)
        prepared.players.heads.eval()
        figures, _ = iteration(prepared.players, make_batches(prepared, batch_size, count))
        norms.append([figures[f"gradient_norm/{player}"].item() for player in ("student", "discriminator")])
        results.append(
            [p.detach().clone() for m in (prepared.players.student, prepared.players.heads) for p in m.parameters()]
        )
    start = prepare_run(world, tmp_path / "out", *extra)
    initial = [p.detach() for m in (start.players.student, start.players.heads) for p in m.parameters()]
    moved = torch.cat([(a - i).flatten() for a, i in zip(results[0], initial)])
    difference = torch.cat([(a - b).flatten() for a, b in zip(*results)])
    # Adam divides by the gradient's size, so the few weights with a vanishing gradient may differ by a step.
    assert difference.norm() < 0.02 * moved.norm()
    # And for the same reason it hides a factor that all gradients have in common.
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)


@pytest.mark.parametrize("weighting", ["exponential", "sds", "uniform", "nfsd"])
@pytest.mark.parametrize("space", ["pixel", "latent"])
def test_every_weighting_and_space_trains(world, tmp_path, weighting, space):
    flags = ("--distillation_weighting", weighting, "--distillation_space", space, "--adversarial_weight", 0)
    prepared = prepare_run(world, tmp_path / "out", *flags)
    before = digest(prepared.players.student)
    values, skipped = iteration(prepared.players, make_batches(prepared))
    assert skipped == 0
    assert values["loss/distillation"] > 0
    assert digest(prepared.players.student) != before


def test_image_condition_is_dropped_where_the_student_sees_noise(world, tmp_path):
    """c = [c_text, c_img]; the c_img half is zero exactly for the samples at s = 999 (and kept on request)."""
    flags = ("--student_timestep_probabilities", 0.25, 0.25, 0, 0.5)
    batch = make_batches(prepare_run(world, tmp_path / "out", *flags), batch_size=16)[0]
    is_last = batch.noise.s == 999
    assert 0 < is_last.sum() < 16
    assert torch.equal(batch.c[:, 32:].abs().sum(1) == 0, is_last)
    assert (batch.c[:, :32].norm(dim=1) - 1).abs().max() < 1e-4
    kept = make_batches(
        prepare_run(world, tmp_path / "out", *flags, "--condition_image_at_last_timestep"), batch_size=16
    )[0]
    assert (kept.c[:, 32:].norm(dim=1) - 1).abs().max() < 1e-4


def test_non_finite_loss_reaches_no_weight(world, tmp_path):
    """A NaN planted in an image and in the student's noise: both updates are skipped, weights and moments stay."""
    prepared = prepare_run(world, tmp_path / "out")
    good, bad = make_batches(prepared, count=2)
    iteration(prepared.players, [good])
    before = [digest(prepared.players.student), digest(prepared.players.losses.discriminator.heads)]
    parameters = [p.detach().clone() for p in prepared.players.heads.parameters()]
    bad.x0[0, 0, 0, 0] = bad.noise.eps[0, 0, 0, 0] = float("nan")
    _, skipped = iteration(prepared.players, [bad])
    assert skipped == 1
    assert digest(prepared.players.student) == before[0]
    assert all(torch.equal(p, q) for p, q in zip(prepared.players.heads.parameters(), parameters))
    for updater in prepared.players.updaters.values():
        for state in updater.optimizer.state.values():
            assert state["exp_avg"].isfinite().all()
            assert state["step"] == 1

"""The losses with the latent discriminator: what it is shown, where gradients go, and what is not computed."""

import dataclasses
import re

import pytest
import torch

from distillation.latents import LatentSpace
from distillation.noise import SampleNoise
from tests.latent import prepare_latent
from tests.support.runs import digest, make_batches
from train_add import iteration
from training.models.families import StableDiffusion, StableDiffusionXL
from training.models.lora import adapter_disabled
from training.monitoring.description import describe

FAMILIES = {"world": StableDiffusion, "v_world": StableDiffusion, "sdxl_world": StableDiffusionXL}


@pytest.fixture(params=FAMILIES)
def prepared(request, tmp_path):
    """A run without L_distill: the only way to the student's weights leads through the teacher."""
    world = request.getfixturevalue(request.param)
    return prepare_latent(world, tmp_path / "out", "--distillation_weight", 0, family=FAMILIES[request.param])


def hooked_features(prepared, z, batch):
    """By hand: alpha z + sigma eps with the teacher's own schedule, and the taps of the teacher's whole forward."""
    alphas_cumprod = prepared.teacher_family.scheduler.alphas_cumprod[batch.noise.t_hat].reshape(-1, 1, 1, 1)
    z_t = alphas_cumprod.sqrt() * z + (1 - alphas_cumprod).sqrt() * batch.noise.eps_hat
    teacher, found = prepared.networks.teacher, []
    handles = [
        module.register_forward_hook(lambda m, a, out: found.append(out[0]))
        for module in (teacher.down_blocks[1].attentions[0], teacher.mid_block.attentions[0])
    ]
    with adapter_disabled(teacher):
        teacher(z_t, batch.noise.t_hat, **batch.teacher_conditions.caption)
    for handle in handles:
        handle.remove()
    return found


def test_real_and_generated_latents_are_diffused_alike_by_the_teachers_schedule(prepared):
    """Also where the student's schedule is rescaled and the teacher's is not (v_world)."""
    batch, losses = make_batches(prepared)[0], prepared.players.losses
    sample, (mean, std) = losses.sample(batch), batch.z0_moments
    with torch.no_grad():
        expected_real = hooked_features(prepared, mean + std * batch.noise.eps_posterior, batch)
        expected_fake = hooked_features(prepared, sample.z, batch)
    for found, expected in ((sample.real, expected_real), (sample.fake, expected_fake)):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert not any(f.requires_grad for f in sample.real)
    assert sample.x is None


def test_gradient_reaches_the_student_and_no_weight_of_the_teacher(prepared):
    batch, losses = make_batches(prepared)[0], prepared.players.losses
    losses.student_losses(batch, losses.sample(batch))["total"].backward()
    missing = [n for n, p in prepared.players.student.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in missing if "conv" in name] == []
    for network in (prepared.networks.teacher, prepared.family.vae, prepared.players.heads):
        assert all(p.grad is None for p in network.parameters())


def test_discriminator_losses_touch_neither_student_nor_teacher(prepared):
    batch, losses = make_batches(prepared)[0], prepared.players.losses
    found = losses.discriminator_losses(batch, losses.sample(batch))
    found["total"].backward()
    assert all(p.grad is None for p in prepared.players.student.parameters())
    assert all(p.grad is None for p in prepared.networks.teacher.parameters())
    assert all(p.grad is not None for p in prepared.players.heads.parameters())
    assert {"discriminator/r1_tap_0", "discriminator/r1_tap_1", "discriminator/accuracy_fake_s999"} <= found.keys()


def test_r1_is_the_squared_gradient_at_the_heads_inputs(world, tmp_path):
    """Against differences: the heads' logits are summed and each input moved along its gradient."""
    prepared = prepare_latent(world, tmp_path / "out", "--discriminator_norm", "group", "--r1_gamma", 1)
    batch, losses = make_batches(prepared)[0], prepared.players.losses
    heads = prepared.players.heads.eval().double()
    sample = losses.sample(batch)
    condition = losses.head_condition(batch)

    def summed(features):
        # The heads compute in float32; here in float64, head by head, for the differences' sake.
        return sum(head(f, condition.double()).sum() for head, f in zip(heads.heads, features))

    features = [f.detach().double() for f in sample.real]
    expected = []
    for k, f in enumerate(features):
        leaf = f.clone().requires_grad_()
        gradient = torch.autograd.grad(summed([*features[:k], leaf, *features[k + 1 :]]), leaf)[0]
        h = 1e-4 / gradient.norm()
        moved = [summed([*features[:k], f + sign * h * gradient, *features[k + 1 :]]).item() for sign in (1, -1)]
        expected.append((moved[0] - moved[1]) / (2 * h.item()) / len(f))  # |g|^2, mean over the batch
    heads.float()
    found = losses.discriminator_losses(batch, sample)
    for k, value in enumerate(expected):
        assert found[f"discriminator/r1_tap_{k}"].item() == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("lora", [(), ("--use_lora", "--lora_rank", 2)], ids=["full", "lora"])
def test_nothing_is_decoded_and_every_network_runs_as_often_as_it_must(world, tmp_path, lora):
    """The student once; the teacher for its target once, and twice up to its deepest tap; the decoder never."""
    prepared = prepare_latent(world, tmp_path / "out", *lora)
    calls = {"middle": 0, "end": 0, "decoder": 0}
    modules = [("decoder", prepared.family.vae.decoder)]
    for network in {prepared.networks.student, prepared.networks.teacher}:
        modules += [("middle", network.mid_block.resnets[0]), ("end", network.conv_out)]
    for name, module in modules:
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    iteration(prepared.players, make_batches(prepared))
    assert calls == {"middle": 4, "end": 2, "decoder": 0}
    assert (prepared.networks.teacher is prepared.networks.student) == bool(lora)


def test_both_players_move_and_the_teacher_does_not(sdxl_world, tmp_path):
    for lora in ((), ("--use_lora", "--gradient_checkpointing")):
        prepared = prepare_latent(sdxl_world, tmp_path / "out", *lora, family=StableDiffusionXL)
        teacher = prepared.networks.teacher

        def base(teacher=teacher):
            return [p.clone() for name, p in teacher.named_parameters() if "lora_" not in name]

        before = base(), digest(prepared.players.student), digest(prepared.players.heads)
        _, skipped = iteration(prepared.players, make_batches(prepared))
        assert skipped == 0
        assert all(torch.equal(a, b) for a, b in zip(before[0], base(), strict=True))
        assert before[1] != digest(prepared.players.student)
        assert before[2] != digest(prepared.players.heads)


def test_latents_of_any_shape_are_judged(world, tmp_path):
    """A batch of a wide and one of a larger image: no feature network fixes the size."""
    prepared = prepare_latent(world, tmp_path / "out")
    batch = make_batches(prepared)[0]
    for height, width in ((8, 14), (24, 16)):
        shape = (4, 4, height, width)
        n = batch.noise
        noise = dataclasses.replace(
            n, **{f: torch.randn(shape) for f in ("eps_posterior", "eps", "eps_teacher", "eps_hat")}
        )
        assert isinstance(noise, SampleNoise)
        other = dataclasses.replace(batch, z0_moments=(torch.randn(shape), torch.ones(shape)), noise=noise)
        figures, skipped = iteration(prepared.players, [other])
        assert skipped == 0
        assert figures["loss/adversarial"].isfinite()


def test_heads_are_told_the_teachers_pooled_caption(sdxl_world, world, tmp_path):
    """Unit vectors of the text encoder's own; none with `--discriminator_text_model none`."""
    for folder, family in ((world, StableDiffusion), (sdxl_world, StableDiffusionXL)):
        prepared = prepare_latent(folder, tmp_path / "out", family=family)
        batch = make_batches(prepared)[0]
        assert torch.allclose(batch.c.norm(dim=1), torch.ones(4), atol=1e-5)
        heads = prepared.players.heads
        assert heads.condition_dim == 128 + batch.c.shape[1]
        if family is StableDiffusionXL:
            pooled = batch.condition["added_cond_kwargs"]["text_embeds"]
            assert torch.allclose(batch.c, torch.nn.functional.normalize(pooled), atol=1e-5)
    without = prepare_latent(world, tmp_path / "out", "--discriminator_text_model", "none")
    assert make_batches(without)[0].c is None
    assert without.players.heads.condition_dim == 128
    assert iteration(without.players, make_batches(without))[1] == 0


@pytest.mark.parametrize("space", ["latent", "pixel"])
def test_gradients_of_both_losses_are_compared_at_the_latent(world, tmp_path, space):
    prepared = prepare_latent(world, tmp_path / "out", "--distillation_space", space)
    figures, _ = iteration(prepared.players, make_batches(prepared), True)
    assert figures["gradient_at_sample/ratio"] > 0


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantized_teacher_judges(world, tmp_path, bits):
    """Gradients pass through bitsandbytes' layers to the latent, with a teacher of its own and with a LoRA's base."""
    for lora in ((), ("--use_lora", "--lora_rank", 2)):
        flags = ("--mixed_precision", "bf16", "--teacher_precision", bits, "--distillation_weight", 0, *lora)
        prepared = prepare_latent(world, tmp_path / "out", *flags)
        batch, losses = make_batches(prepared)[0], prepared.players.losses
        losses.student_losses(batch, losses.sample(batch))["total"].backward()
        trainable = prepared.players.trainable().values()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trainable)


def test_autoencoder_is_not_asked_to_decode(world, tmp_path, monkeypatch):
    monkeypatch.setattr(LatentSpace, "decode", lambda *_: pytest.fail("decoded"))
    prepared = prepare_latent(world, tmp_path / "out")
    iteration(prepared.players, make_batches(prepared))


def test_description_names_the_discriminator_and_the_teachers_part(world, tmp_path):
    flags = ("--distillation_weight", 0, "--discriminator_steps", 2, "--student_timestep_warmup_steps", 7)
    lines = describe(prepare_latent(world, tmp_path / "out", *flags))
    assert re.search(
        r"discriminator +latent, .* in 2 heads .* teacher's down mid blocks, t\^ logit-normal \(1, 1\)", lines
    )
    assert re.search(r"teacher +.*/teacher, for the discriminator's features alone", lines)
    assert "2 updates of D for one of the student" in lines
    assert "drawn 7 iterations [0.5, 0.5, 0.0, 0.0], then uniformly" in lines

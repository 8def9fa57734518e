"""A teacher unlike the student (paper, Table 1e): prediction type, size of the UNet, latent space."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline

import train_add
import train_add_sdxl
from distillation.objectives import distillation_loss, distillation_weight
from examples.tiny import models
from pipelines import ADDPipeline, ADDXLPipeline
from tests.support import tiny_world
from tests.support.runs import digest, make_batches, prepare_run
from train_add import iteration
from training.errors import OptionError
from training.models.families import StableDiffusion, StableDiffusionXL


def pair(student_world, teacher_world):
    """The flags for a student and a teacher of two worlds."""
    return (
        "--pretrained_student_model", student_world / "teacher",
        "--pretrained_teacher_model", teacher_world / "teacher",
    )  # fmt: skip


@pytest.fixture(scope="module")
def same_space(world, v_world, tmp_path_factory):
    """A v-prediction teacher with a larger UNet and a fine-tuned decoder in the latent space of `world`."""
    folder = tmp_path_factory.mktemp("same_space") / "teacher"
    pipe = StableDiffusionPipeline.from_pretrained(v_world / "teacher")
    torch.manual_seed(5)
    pipe.unet = models.make_unet((32, 32), cross_attention_dim=32)
    pipe.vae = StableDiffusionPipeline.from_pretrained(world / "teacher").vae
    torch.nn.init.normal_(pipe.vae.decoder.conv_out.weight, std=0.1)
    pipe.save_pretrained(folder)
    return folder.parent


@pytest.fixture(scope="module")
def other_space(world, tmp_path_factory):
    """A teacher whose autoencoder is not the student's."""
    folder = tmp_path_factory.mktemp("other_space")
    shutil.copytree(world / "teacher", folder / "teacher")
    torch.manual_seed(6)
    models.make_vae((8, 8, 8)).save_pretrained(folder / "teacher" / "vae")
    return folder


def test_student_keeps_its_prediction_type_and_the_teacher_its_own(world, same_space, tmp_path):
    """An epsilon student of another size learns from a v-prediction teacher, in latents: the space is one."""
    prepared = prepare_run(world, tmp_path / "out", *pair(world, same_space), "--distillation_space", "latent")
    assert prepared.networks.teacher_latents is None
    student, teacher = prepared.schedules
    assert (student.prediction_type, teacher.prediction_type) == ("epsilon", "v_prediction")
    assert prepared.networks.student.config.block_out_channels != prepared.networks.teacher.config.block_out_channels
    batch = make_batches(prepared)[0]
    sample = prepared.players.losses.sample(batch)
    t, eps = batch.noise.t, batch.noise.eps_teacher
    x_t = teacher.diffuse(sample.z.detach(), eps, t)
    with torch.no_grad():
        v = prepared.networks.teacher(x_t, t, **batch.teacher_conditions.caption).sample
    alpha, sigma = (table[t].reshape(-1, 1, 1, 1) for table in (teacher.alphas, teacher.sigmas))
    expected = distillation_loss(sample.z, alpha * x_t - sigma * v, distillation_weight(teacher, t, "exponential"))
    assert torch.allclose(prepared.players.losses.distillation(batch, sample), expected, rtol=1e-5)


def test_teacher_in_another_latent_space_sees_the_students_pixels(world, other_space, tmp_path):
    """decode by the student's autoencoder, encode, diffuse, denoise and decode by the teacher's; loss in pixels."""
    prepared = prepare_run(world, tmp_path / "out", *pair(world, other_space))
    theirs, ours = prepared.networks.teacher_latents, prepared.networks.latents
    assert theirs is not None
    assert theirs.vae is not ours.vae
    batch = make_batches(prepared)[0]
    sample = prepared.players.losses.sample(batch)
    schedule, t = prepared.schedules[1], batch.noise.t
    with torch.no_grad():
        factor = theirs.vae.config.scaling_factor
        z = theirs.vae.encode(ours.vae.decode(sample.z / ours.vae.config.scaling_factor).sample).latent_dist.mean
        x_t = schedule.diffuse(z * factor, batch.noise.eps_teacher, t)
        target = schedule.x0(prepared.networks.teacher(x_t, t, **batch.teacher_conditions.caption).sample, x_t, t)
        pixels = theirs.vae.decode(target / factor).sample
    expected = distillation_loss(sample.x, pixels, distillation_weight(schedule, t, "exponential"))
    loss = prepared.players.losses.distillation(batch, sample)
    assert torch.allclose(loss, expected, rtol=1e-4)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in prepared.players.student.named_parameters()
               if "conv" in n)  # fmt: skip


def test_captions_are_encoded_by_each_ones_own_encoders(world, sdxl_world, tmp_path):
    prepared = prepare_run(world, tmp_path / "out", *pair(world, sdxl_world), "--teacher_guidance_scale", 3)
    batch = make_batches(prepared)[0]
    assert batch.condition["encoder_hidden_states"].shape[-1] == tiny_world.WIDTHS[0]
    for condition in (batch.teacher_conditions.caption, batch.teacher_conditions.unconditional):
        assert condition["encoder_hidden_states"].shape[-1] == sum(tiny_world.WIDTHS)
        assert condition["added_cond_kwargs"]["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 4


@pytest.mark.parametrize("direction", ["sd student", "sdxl student"])
def test_sd_and_sdxl_teach_each_other(world, sdxl_world, tmp_path, direction):
    """The student is published as its own family and neither teacher nor autoencoders change."""
    is_sd = direction == "sd student"
    student, teacher = (world, sdxl_world) if is_sd else (sdxl_world, world)
    family = StableDiffusion if is_sd else StableDiffusionXL
    prepared = prepare_run(world, tmp_path / "prepared", *pair(student, teacher), family=family)
    still = [prepared.networks.teacher, prepared.networks.latents.vae, prepared.networks.teacher_latents.vae]
    before = [digest(m) for m in still]
    moved = digest(prepared.networks.student)
    iteration(prepared.players, make_batches(prepared))
    assert [digest(m) for m in still] == before
    assert digest(prepared.networks.student) != moved

    (train_add if is_sd else train_add_sdxl).main(
        tiny_world.flags(world, tmp_path / "out", *pair(student, teacher), "--distillation_weighting", "nfsd")
    )
    assert type(ADDPipeline.from_pretrained(tmp_path / "out")) is (ADDPipeline if is_sd else ADDXLPipeline)


def test_lora_student_with_another_teacher_has_two_unets(world, same_space, tmp_path):
    prepared = prepare_run(world, tmp_path / "out", *pair(world, same_space), "--use_lora", "--lora_rank", 2)
    assert prepared.networks.teacher is not prepared.networks.student
    assert not any("lora" in name for name, _ in prepared.networks.teacher.named_parameters())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--distillation_space", "latent"), "--distillation_space got 'latent'.*use --distillation_space pixel"),
        (("--decode_crop_size", 16), "--decode_crop_size got 16.*whole decoded image"),
    ],
)
def test_what_cannot_work_across_latent_spaces_is_refused(world, sdxl_world, other_space, tmp_path, extra, message,
                                                          monkeypatch):  # fmt: skip
    """Where the scaling tells the spaces apart, before any weight is loaded; where only the encoder does, after."""
    with pytest.raises(OptionError, match=message):
        prepare_run(world, tmp_path / "out", *pair(world, other_space), *extra)
    for part in ("load_unet", "load_vae", "load_text_encoders"):
        monkeypatch.setattr(StableDiffusion, part, lambda *a: pytest.fail("weights were loaded"))
    with pytest.raises(OptionError, match=message):
        prepare_run(world, tmp_path / "out", *pair(world, sdxl_world), *extra)


def test_adversarial_alone_loads_no_teacher(world, tmp_path):
    prepared = prepare_run(world, tmp_path / "out", "--distillation_weight", 0)
    assert prepared.networks.teacher is None
    assert prepared.players.losses.teacher is None

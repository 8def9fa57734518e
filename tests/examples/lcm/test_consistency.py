"""Consistency distillation against closed forms and diffusers' own DDIM, and what it publishes."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler, StableDiffusionPipeline

from examples.lcm import __main__ as lcm
from examples.lcm.consistency import Consistency
from tests.evaluation.commands import exit_status
from tests.evaluation.tiny_folder import make_tiny_dir

SHAPE = (3, 4, 8, 8)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def constant(value):
    """A network that predicts `value` whatever it sees, plus its condition's `shift`."""
    return lambda x, t, shift=0.0: SimpleNamespace(sample=value + shift)


def knows(scheduler, latents):
    """The perfect epsilon network of a distribution that is the one point `latents`."""

    def network(x, t, **_):
        alpha = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        return SimpleNamespace(sample=(x - alpha.sqrt() * latents) / (1 - alpha).sqrt())

    return network


def consistency(teacher=None, prediction_type="epsilon", guidance_scale=1.0) -> Consistency:
    scheduler = DDPMScheduler(prediction_type=prediction_type, **BETAS)
    return Consistency(teacher, scheduler, LCMScheduler.from_config(scheduler.config), guidance_scale)


@pytest.fixture
def noise():
    torch.manual_seed(0)
    return torch.randn(SHAPE)


def test_the_boundary_is_kept_by_any_network(noise):
    """f(x, 0) = x to the bit, whatever the network says; far from 0, f is the network's x0."""
    method, network = consistency(), constant(torch.full(SHAPE, 0.7))
    assert torch.equal(method.apply(network, noise, torch.zeros(3, dtype=torch.long), {}), noise)
    t = torch.full((3,), 999)
    alpha = method.scheduler.alphas_cumprod[999]
    x0 = (noise - (1 - alpha).sqrt() * 0.7) / alpha.sqrt()
    torch.testing.assert_close(method.apply(network, noise, t, {}), x0, rtol=1e-3, atol=1e-3)


def test_scalings_are_those_of_the_paper(noise):
    """c_skip = 0.25 / ((10 t)^2 + 0.25), c_out = 10 t / sqrt((10 t)^2 + 0.25), each sample at its own t."""
    method = consistency(prediction_type="v_prediction")
    t, output = torch.tensor([0, 1, 500]), torch.ones(SHAPE)
    s = 10.0 * t.view(-1, 1, 1, 1)
    alpha = method.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    x0 = alpha.sqrt() * noise - (1 - alpha).sqrt() * output
    expected = 0.25 / (s**2 + 0.25) * noise + s / (s**2 + 0.25).sqrt() * x0
    torch.testing.assert_close(method.apply(constant(output), noise, t, {}), expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("t", [999, 499, 39])
def test_the_teachers_step_is_diffusers_ddim(noise, prediction_type, t):
    """50 trailing steps of `DDIMScheduler` have LCM's stride."""
    output = torch.randn(SHAPE)
    method = consistency(constant(output), prediction_type)
    ddim = DDIMScheduler(prediction_type=prediction_type, clip_sample=False, timestep_spacing="trailing", **BETAS)
    ddim.set_timesteps(50)
    times = torch.full((3,), t)
    mine = method.teacher_step(noise, times, times - method.stride, {}, {})
    torch.testing.assert_close(mine, ddim.step(output, t, noise).prev_sample, rtol=1e-4, atol=1e-4)


def test_guidance_moves_away_from_the_empty_caption(noise):
    """empty + w (caption - empty), as one prediction."""
    t = torch.tensor([999, 499, 39])
    caption, empty = {"shift": 1.0}, {"shift": 0.25}
    guided = consistency(constant(noise), guidance_scale=3.0).teacher_step(noise, t, t - 20, caption, empty)
    plain = consistency(constant(noise)).teacher_step(noise, t, t - 20, {"shift": 0.25 + 3 * 0.75}, {})
    torch.testing.assert_close(guided, plain, rtol=1e-4, atol=1e-4)


def test_timesteps_are_lcms_own():
    """All 50 points that `LCMScheduler` samples at, each with the one below; the lowest with 0."""
    method = consistency()
    torch.manual_seed(0)
    start, after = method.draw_timesteps(4000)
    method.lcm.set_timesteps(50)
    assert sorted(set(start.tolist())) == sorted(method.lcm.timesteps.tolist())
    assert torch.equal(after, torch.where(start == 19, 0, start - 20))


def test_the_target_is_the_averages_at_the_next_point(noise):
    """Written out: f(student, x_t) against f(average, teacher's x_{t_n}); only the student learns."""
    method = consistency(constant(torch.full(SHAPE, 0.1)))
    latents, t = torch.randn(SHAPE), torch.tensor([19, 499, 999])
    after = (t - 20).clamp_min(0)
    student, average = torch.zeros(SHAPE, requires_grad=True), torch.ones(SHAPE, requires_grad=True)
    loss = method.loss(constant(student), constant(average), latents, noise, (t, after), {}, {})
    x = method.scheduler.add_noise(latents, noise, t)
    target = method.apply(constant(average), method.teacher_step(x, t, after, {}, {}), after, {})
    difference = method.apply(constant(student), x, t, {}) - target
    assert loss.item() == pytest.approx(((difference**2 + 1e-6).sqrt() - 1e-3).mean().item(), rel=1e-5)
    loss.backward()
    assert student.grad.abs().sum() > 0
    assert average.grad is None


def test_a_perfect_network_has_no_loss(noise):
    """Where all data is one point, its denoiser is a consistency function: nothing is left to learn."""
    latents = torch.randn(SHAPE)
    method = consistency()
    network = knows(method.scheduler, latents)
    method = consistency(network)
    times = torch.tensor([999, 499, 39]), torch.tensor([979, 479, 19])
    assert method.loss(network, network, latents, noise, times, {}, {}).item() < 1e-3
    other = knows(method.scheduler, latents + 1)
    assert method.loss(other, network, latents, noise, times, {}, {}).item() > 0.5


def test_the_average_follows_the_student():
    """0.75 of itself and 0.25 of the student."""
    average, student = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    before = average.weight.item()
    lcm.update_average(average, student, 0.75)
    assert average.weight.item() == pytest.approx(0.75 * before + 0.25 * student.weight.item())


def test_publishes_a_stock_repo(world, tmp_path):
    """Plain diffusers loads it with `LCMScheduler` and draws in 1 and 4 steps; trained, and the teacher left alone."""
    tiny, out = make_tiny_dir(world, tmp_path / "tiny"), tmp_path / "lcm"
    before = (tiny / "teacher/unet/diffusion_pytorch_model.safetensors").read_bytes()
    flags = ["--tiny_dir", str(tiny), "--output_dir", str(out), "--updates", "2", "--batch_size", "4"]
    assert exit_status(lcm.main, [*flags, "--learning_rate", "1e-2", "--ema_decay", "0"]) == 0
    assert (tiny / "teacher/unet/diffusion_pytorch_model.safetensors").read_bytes() == before
    assert json.loads((out / "lcm.json").read_text())["command"].startswith("python -m examples.lcm --tiny_dir")
    pipeline = StableDiffusionPipeline.from_pretrained(out)
    assert isinstance(pipeline.scheduler, LCMScheduler)
    teacher = StableDiffusionPipeline.from_pretrained(tiny / "teacher")
    assert not torch.equal(pipeline.unet.conv_in.weight, teacher.unet.conv_in.weight)
    pipeline.set_progress_bar_config(disable=True)
    for steps in (1, 4):
        images = pipeline("a handwritten two", num_inference_steps=steps, guidance_scale=0.0, output_type="pt").images
        assert images.isfinite().all()
        assert len(pipeline.scheduler.timesteps) == steps
        assert pipeline.scheduler.timesteps[0] == 999


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--tiny_dir", "nowhere"), "--tiny_dir nowhere: no data/train/metadata.jsonl there"),
        (("--updates", "0"), "--updates 0: give 1 or more"),
        (("--guidance_scale", "0"), "--guidance_scale 0.0"),
    ],
)
def test_refuses_what_cannot_work(world, tmp_path, extra, message, capsys):
    tiny = make_tiny_dir(world, tmp_path / "tiny")
    assert (
        exit_status(lcm.main, ["--tiny_dir", str(tiny), "--output_dir", str(tmp_path), "--updates", "1", *extra]) == 2
    )
    assert message in capsys.readouterr().err

"""The run without contents against a real one: same losses, same updates, so the same FLOPs and the same memory."""

import dataclasses

import pytest
import torch
from torch.utils._pytree import tree_leaves

from benchmarks import architectures, fake
from benchmarks.count import GIB, count_iteration
from benchmarks.fake import fake_run
from benchmarks.meter import Meter
from benchmarks.packed import PackedLinear, pack_linears
from examples.tiny import models
from tests.latent import latent_options
from tests.support.runs import make_batches, options_of, prepare_run
from tests.support.tiny_world import WIDTHS
from train_add import iteration, prepare
from training.models.families import StableDiffusion
from training.models.quantization import quantize_linears
from training.optimization import Updater
from training.processes.accelerator import make_accelerator

FLAGS = (
    "--mixed_precision no",
    "--mixed_precision bf16",
    "--mixed_precision bf16 --use_lora --lora_rank 4",
    "--mixed_precision bf16 --use_8bit_adam --gradient_checkpointing",
    "--mixed_precision bf16 --distillation_space latent --decode_crop_size 16 --decode_crop_halo 1",
    "--mixed_precision no --distillation_weighting nfsd --discriminator_norm mixed_batch --r1_gamma 0",
    "--mixed_precision no --teacher_guidance_scale 2 --reconstruct_real --no_diffaugment",
    "--mixed_precision bf16 --use_ema --distillation_weight 0",
    "--mixed_precision bf16 --teacher_precision fp32 --use_ema",
    "--mixed_precision no --adversarial_weight 0",
)
TEACHER = ("--pretrained_teacher_model", "x", "--resolution", "32", "--cache_dir_latents", "there")


class TinyWorld(architectures.Architecture):
    """The networks of `tests.support.tiny_world`, from their configs."""

    def make_unet(self):
        return models.make_unet((16, 32), cross_attention_dim=WIDTHS[0])

    def make_vae(self):
        return models.make_vae((8, 8, 8))


TINY = TinyWorld("sd", {"cross_attention_dim": WIDTHS[0]}, ({"hidden_size": WIDTHS[0]},))


@pytest.fixture
def tiny(monkeypatch):
    """In the full-size models' place; autocast as a CPU has it, which is where the real run takes place."""
    monkeypatch.setitem(architectures.ARCHITECTURES, "tiny", TINY)
    monkeypatch.setattr(architectures, "TEXT_LENGTH", models.MAX_TOKENS)
    monkeypatch.setattr(fake, "CONDITION_DIM", 2 * WIDTHS[0])
    monkeypatch.setattr(fake, "make_dinov2", lambda _: models.make_dinov2(width=32, layers=4))
    monkeypatch.setattr(fake, "IN_FLOAT32", ())
    return "tiny"


def measured(prepared):
    """FLOPs an image and peak of the second iteration, with real tensors."""
    meter, networks = Meter(), prepared.networks
    for module in (networks.student, networks.teacher, networks.latents.vae, prepared.players.losses.discriminator):
        if module is not None:
            meter.hold([*module.parameters(), *module.buffers()])
    if prepared.players.ema is not None:
        meter.hold(prepared.players.ema.shadow_params)
    [batch] = make_batches(prepared)
    for part in vars(batch).values():
        values = vars(part) if hasattr(part, "__dict__") else part
        meter.hold(t for t in tree_leaves(values) if isinstance(t, torch.Tensor))
    with meter:
        for _ in range(2):
            meter.reset()
            iteration(prepared.players, [batch])
    return meter.flops / 4, meter.peak


@pytest.mark.parametrize("flags", FLAGS)
def test_counted_is_measured(world, tmp_path, tiny, flags):
    prepared = prepare_run(world, tmp_path / "out", "--discriminator_input_size", 32, *flags.split())
    flops, peak = measured(prepared)
    hardware = dataclasses.replace(prepared.options.hardware, cache_dir_latents="there")  # the batches were made before
    [cost] = count_iteration(tiny, dataclasses.replace(prepared.options, hardware=hardware))
    assert cost.batch == 4
    assert cost.tflop * 1e12 == pytest.approx(flops, rel=1e-6)
    assert cost.peak_gib * GIB == pytest.approx(peak, rel=0.01)
    assert cost.trainable == sum(p.numel() for p in prepared.players.trainable().values())


@pytest.mark.parametrize(
    "flags",
    [
        "--mixed_precision no",
        "--mixed_precision bf16 --use_lora --lora_rank 4 --gradient_checkpointing",
        "--mixed_precision bf16 --gradient_checkpointing --distillation_weight 0 --discriminator_taps down.1",
    ],
)
def test_counted_is_measured_with_the_latent_discriminator(world, tmp_path, tiny, flags):
    options = latent_options(world, tmp_path / "out", *flags.split())
    prepared = prepare(options, StableDiffusion, make_accelerator(options))
    flops, peak = measured(prepared)
    hardware = dataclasses.replace(options.hardware, cache_dir_latents="there")
    [cost] = count_iteration(tiny, dataclasses.replace(options, hardware=hardware))
    assert cost.tflop * 1e12 == pytest.approx(flops, rel=1e-6)
    assert cost.peak_gib * GIB == pytest.approx(peak, rel=0.01)


def test_accumulation_samples_twice_and_holds_one_graph(tiny):
    """Two micro-batches of 4 beside one batch of 8, per image: one more sampling, and far less memory."""

    def cost(*flags):
        return count_iteration(tiny, options_of(*TEACHER, *flags))[0]

    flags = ("--discriminator_input_size", "32", "--mixed_precision", "bf16")
    whole = cost(*flags, "--train_batch_size", "8")
    parts = cost(*flags, "--train_batch_size", "4", "--gradient_accumulation_steps", "2")
    assert parts.batch == whole.batch == 8
    assert 1.1 * whole.tflop < parts.tflop < 1.6 * whole.tflop
    assert parts.peak_gib - parts.resting_gib < 0.6 * (whole.peak_gib - whole.resting_gib)


def stored_bytes(network):
    tensors = [*network.parameters(), *network.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_linears_take_what_bitsandbytes_takes(bits):
    """Against the real layers: weights and scales, and the product's shape, precision and gradient."""
    network = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Sequential(torch.nn.Linear(512, 128)))
    network.bfloat16().requires_grad_(False)
    packed = pack_linears(network, bits)
    assert isinstance(packed[1][0], PackedLinear)
    x = torch.randn(2, 3, 256, dtype=torch.bfloat16, requires_grad=True)
    y = packed(x)
    assert (y.shape, y.dtype) == ((2, 3, 128), torch.bfloat16)
    y.sum().backward()
    assert x.grad.shape == x.shape
    linears = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Linear(512, 128)).bfloat16()
    real = quantize_linears(linears.requires_grad_(False), bits)
    scales = sum(m.weight.quant_state.absmax.nbytes if bits == 4 else m.weight.SCB.nbytes for m in real)
    assert stored_bytes(packed) == pytest.approx(stored_bytes(real) + scales, rel=1e-3)


def test_a_real_run_may_follow(world, tmp_path, tiny):
    """Nothing that was put in place for the count is left: another precision, norms, the guard."""
    options = options_of(*TEACHER, "--mixed_precision", "bf16", "--discriminator_input_size", 32)
    before = torch.nn.functional.group_norm, Updater._guarded_step
    with fake_run(tiny, options):
        assert Updater._guarded_step is not before[1]
    assert (torch.nn.functional.group_norm, Updater._guarded_step) == before
    prepared = prepare_run(world, tmp_path / "out", "--mixed_precision", "no")
    assert iteration(prepared.players, make_batches(prepared))[1] == 0


def test_norms_run_in_float32_under_autocast_as_on_cuda():
    norm = fake._in_float32(torch.nn.functional.group_norm)
    x = torch.randn(2, 8, 4, dtype=torch.bfloat16)
    assert norm(x, 2).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x, 2).dtype == torch.float32

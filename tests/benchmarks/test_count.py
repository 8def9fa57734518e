"""Counted costs against the published table of components and recipes (TFLOP, one multiply-add counted as two)."""

from functools import cache

import pytest
import torch
from torch import nn

from benchmarks.architectures import ARCHITECTURES, DINOV2_L, DINOV2_S, MEMORY, make_dinov2, make_openclip_g
from benchmarks.count import GIB, count_components, count_iteration
from benchmarks.full_size import training_options, without_cache

COMPONENTS = {
    "sd15 UNet @512": 0.80, "sd15 UNet @512 +backward": 2.41,
    "sdxl UNet @512": 1.59, "sdxl UNet @512 +backward": 4.71,
    "sdxl UNet @1024": 6.76, "sdxl UNet @1024 +backward": 20.2,
    "VAE decode 512": 2.52, "VAE decode 512 +backward": 5.06,
    "VAE decode 1024": 10.5, "VAE decode 1024 +backward": 21.5,
    "VAE decode 224": 0.48, "VAE decode 224 +backward": 0.95, "VAE encode 512": 1.12, "VAE encode 1024": 4.88,
    "TAESD decode 512": 0.14, "TAESD decode 512 +backward": 0.28,
    "DINOv2-S 224": 0.012, "DINOv2-S 518": 0.093, "DINOv2-S 224 +backward": 0.026, "DINOv2-S 518 +backward": 0.22,
    "DINOv2-L 224": 0.16, "DINOv2-L 518": 1.01,
}  # fmt: skip
PARAMETERS = {"sd15": (859.52, (123.06,)), "sd21": (865.91, (340.39,)), "sdxl": (2567.46, (123.06, 694.66))}

NO_HALO = ("--decode_crop_halo", "0")


@cache
def counted(model, recipe, *flags):
    """Cost of one iteration; counting takes seconds, and several tests look at the same one."""
    return count_iteration(model, training_options(model, recipe, 512, 1, "world", flags))[0]


def test_components_cost_what_the_table_says():
    found = count_components()
    assert found.keys() == COMPONENTS.keys()
    for name, expected in COMPONENTS.items():
        assert found[name] == pytest.approx(expected, rel=0.03), name


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_architectures_have_the_published_models_parameters(model):
    """In millions, UNet and text encoders; what a wrong width or depth would change."""
    unet, encoders = PARAMETERS[model]
    with torch.device("meta"):
        built = [ARCHITECTURES[model].make_unet(), *ARCHITECTURES[model].make_text_encoders()]
        vae, small, large = ARCHITECTURES[model].make_vae(), make_dinov2(DINOV2_S), make_dinov2(DINOV2_L)
    counts = [sum(p.numel() for p in network.parameters()) / 1e6 for network in built]
    assert counts == pytest.approx([unet, *encoders], abs=0.01)
    others = [sum(p.numel() for p in network.parameters()) / 1e6 for network in (vae, small, large)]
    assert others == pytest.approx([83.65, 22.06, 304.37], abs=0.01)


@pytest.mark.parametrize(
    ("model", "recipe", "expected"),
    [("sd15", "A", 11.2), ("sd15", "B", 8.3), ("sd15", "C", 4.2), ("sd15", "D", 3.6), ("sdxl", "C", 7.3)],
)
def test_recipes_cost_what_the_table_says(model, recipe, expected):
    """The real iteration, both players' backward and R1 included. The table's crop has no halo."""
    assert counted(model, recipe, *NO_HALO).tflop == pytest.approx(expected, rel=0.03)


def test_lora_costs_less_than_all_weights():
    """The table's 3.6 leaves the adapter's own products out; with them it is still a tenth of a saving, and memory
    falls to a third."""
    whole, lora = (counted("sd15", recipe, *NO_HALO) for recipe in ("C", "C+LoRA"))
    assert 3.6 < lora.tflop < 0.92 * whole.tflop
    assert lora.frozen == whole.trainable
    assert lora.trainable < 0.1 * whole.trainable
    assert lora.peak_gib < 0.4 * whole.peak_gib


def test_gradient_checkpointing_trades_activations_for_a_second_forward():
    plain, thrifty = (counted("sd15", "C+LoRA", *NO_HALO, *more) for more in ((), ("--gradient_checkpointing",)))
    assert thrifty.resting_gib == plain.resting_gib
    assert thrifty.peak_gib - thrifty.resting_gib < 0.4 * (plain.peak_gib - plain.resting_gib)
    # The student's forward and the decoder's, once more.
    assert thrifty.tflop - plain.tflop == pytest.approx(0.80 + 0.48, rel=0.4)


@pytest.mark.parametrize(
    ("flags", "per_trainable", "per_frozen"),
    [((), 4 + 8, 2), (("--use_8bit_adam",), 4 + 2, 2), (("--use_ema",), 4 + 8 + 4, 2),
     (("--teacher_precision", "4bit"), 4 + 8, None)],
)  # fmt: skip
def test_what_rests_between_iterations(flags, per_trainable, per_frozen):
    """Weights in float32, Adam's two moments in 32 or 8 bits, an average; the teacher in half precision or less."""
    cost = counted("sd15", "C", *NO_HALO, *flags)
    with torch.device("meta"):
        unet, vae = (ARCHITECTURES["sd15"].make_unet(), ARCHITECTURES["sd15"].make_vae())
    linear = sum(m.weight.numel() for m in unet.modules() if isinstance(m, nn.Linear))
    frozen = 2 * cost.frozen - linear * (2 - 4 / 8 - 4 / 64) if per_frozen is None else per_frozen * cost.frozen
    expected = per_trainable * cost.trainable + frozen + 2 * sum(p.numel() for p in vae.parameters())
    assert cost.resting_gib * GIB == pytest.approx(expected, rel=0.03)  # F, heads and scales come to it


def test_the_cache_takes_the_place_of_the_encoders():
    """An image's encoding, DINOv2-L on it, two text encoders on its caption; and those three encoders' memory."""
    cached = counted("sd15", "C", *NO_HALO)
    [online] = count_iteration("sd15", without_cache(training_options("sd15", "C", 512, 1, "world", NO_HALO)))
    with torch.device("meta"):
        encoders = [*ARCHITECTURES["sd15"].make_text_encoders(), make_openclip_g(), make_dinov2(DINOV2_L)]
    parameters = [sum(p.numel() for p in encoder.parameters()) for encoder in encoders]
    assert (online.resting_gib - cached.resting_gib) * GIB == pytest.approx(2 * sum(parameters), rel=0.01)
    of_text = 2 * 77 * sum(m.weight.numel() for e in encoders[:2] for m in e.modules() if isinstance(m, nn.Linear))
    assert online.tflop - cached.tflop == pytest.approx(1.12 + 0.16 + of_text / 1e12, rel=0.05)


def test_the_aims_of_memory_are_within_reach():
    """By count, with 3 GiB to spare for what is not counted: kernels' workspace and fragments."""
    more = ("--gradient_checkpointing", "--use_8bit_adam")
    assert counted("sdxl", "C+LoRA", *more).peak_gib < 16 - 3
    assert counted("sdxl", "C", *more).peak_gib < 40 - 3


def test_what_saves_most_of_all_weights_depends_on_the_batch():
    """As `memory_advice.advice` has it: the optimizer's state with one image, activations with eight."""
    args = {flag: training_options("sd15", "C", 512, 1, "world", flag) for flag in ((), MEMORY[:1], MEMORY[1:])}
    plain, checkpointed, eight_bit = (count_iteration("sd15", a, batches=(1, 8)) for a in args.values())
    assert eight_bit[0].peak_gib < checkpointed[0].peak_gib < plain[0].peak_gib
    assert checkpointed[1].peak_gib < eight_bit[1].peak_gib < plain[1].peak_gib


def test_several_batch_sizes_in_one_go():
    """Twice the images: the same FLOPs each, the same at rest, more activations."""
    args = training_options("sd15", "C+LoRA", 256, 1, "world", ("--decode_crop_size", "128"))
    one, two = count_iteration("sd15", args, batches=(1, 2))
    assert (one.batch, two.batch) == (1, 2)
    assert one.tflop == pytest.approx(two.tflop, rel=1e-3)
    assert one.resting_gib == two.resting_gib
    assert two.peak_gib > one.peak_gib

"""Counted costs against the published table of components and recipes (TFLOP, one multiply-add counted as two)."""

from functools import cache

import pytest
import torch

from benchmarks.architectures import ARCHITECTURES, DINOV2_L, DINOV2_S, make_dinov2
from benchmarks.count import Activations, count_components, count_iteration
from benchmarks.full_size import training_args

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


@cache
def counted(model, recipe, *flags):
    """Cost of one iteration; counting takes seconds, and several tests look at the same one."""
    return count_iteration(model, training_args(model, recipe, 512, 1, "world", flags))


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
    """The real step, both players' backward included. The table's crop has no halo."""
    assert counted(model, recipe, "--decode_crop_halo", "0").tflop == pytest.approx(expected, rel=0.02)


def test_lora_costs_less_than_all_weights():
    """The table's 3.6 leaves the adapter's own products out; with them it is still a fifth of a saving."""
    whole, lora = (counted("sd15", recipe, "--decode_crop_halo", "0") for recipe in ("C", "C+LoRA"))
    assert 3.6 < lora.tflop < 0.92 * whole.tflop
    assert lora.frozen == whole.trainable
    assert lora.trainable < 0.1 * whole.trainable
    assert lora.activations_gib < 1.05 * whole.activations_gib


def test_gradient_checkpointing_trades_activations_for_a_second_forward():
    flags = ("--decode_crop_halo", "0")
    plain, thrifty = counted("sd15", "C", *flags), counted("sd15", "C", *flags, "--gradient_checkpointing")
    assert thrifty.activations_gib < 0.15 * plain.activations_gib
    # The student's forward and the decoder's, once more.
    assert thrifty.tflop - plain.tflop == pytest.approx(0.80 + 0.48, rel=0.4)


def test_activations_count_shared_memory_once_and_no_parameters():
    activations, weight = Activations(), torch.nn.Parameter(torch.ones(4, 4, device="meta"))
    x = torch.ones(8, 4, device="meta", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(activations.add, lambda t: t):
        h = x @ weight
        (h.sigmoid() + h.view(4, 8).sigmoid().view(8, 4)).sum()
    # x for the weight's gradient, and the two sigmoids' outputs, 8 * 4 floats each.
    assert activations.gib([weight]) * 2**30 == 3 * 8 * 4 * 4

"""The teacher's UNet as a feature network: where it is tapped, what it computes and where gradients go."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel

from discriminator import UNetFeatures, find_taps
from examples.tiny import models
from tests.support.runs import options_of
from training.models.lora import add_lora, checkpointed, without_adapter

WIDTH = 32
TAPS = ("down_blocks.1.attentions.0", "mid_block.attentions.0")


def make_unet():
    torch.manual_seed(0)
    return models.make_unet((16, 32), cross_attention_dim=WIDTH).eval().requires_grad_(False)


def inputs(shape=(3, 4, 8, 8)):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=g, requires_grad=True)
    return x, torch.tensor([10, 500, 999]), {"encoder_hidden_states": torch.randn(3, 5, WIDTH, generator=g)}


def hooked(unet, taps, x, t, condition):
    """The taps' outputs in the whole forward of `unet`: the reference."""
    found = {}
    handles = [
        unet.get_submodule(tap).register_forward_hook(lambda m, a, out, tap=tap: found.update({tap: out[0]}))
        for tap in taps
    ]
    unet(x, t, **condition)
    for handle in handles:
        handle.remove()
    return [found[tap] for tap in taps]


def lora_unet():
    """A base with an adapter that changes it: B is not zero."""
    unet = make_unet()
    add_lora(unet, options_of("--pretrained_teacher_model", "x", "--use_lora", "--lora_rank", 2).lora)
    torch.manual_seed(2)
    for name, p in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    return unet.train()


def test_taps_are_the_attention_blocks_in_the_order_of_the_forward():
    unet = make_unet()
    assert find_taps(unet, ["mid", "down"]) == TAPS
    assert find_taps(unet, ["down.1"]) == TAPS[:1]
    assert find_taps(unet, ["mid", "up"]) == (TAPS[1], "up_blocks.0.attentions.0", "up_blocks.0.attentions.1")
    features = UNetFeatures(unet, unet, find_taps(unet, ["down", "mid", "up"]))
    assert features.widths == tuple(f.shape[1] for f in features(*inputs()))


def test_taps_of_sdxl():
    """Two attention blocks in each of the two lower blocks and one in the middle; the first block has none."""
    with torch.device("meta"):
        from benchmarks.architectures import ARCHITECTURES

        unet = ARCHITECTURES["sdxl"].make_unet()
    taps = find_taps(unet, ["down", "mid"])
    assert taps == (
        *(f"down_blocks.{i}.attentions.{j}" for i in (1, 2) for j in (0, 1)), "mid_block.attentions.0"
    )  # fmt: skip
    assert UNetFeatures(unet, unet, taps).widths == (640, 640, 1280, 1280, 1280)


@pytest.mark.parametrize("part", ["down.0", "down.7", "middle", "do"])
def test_part_without_attention_is_refused(part):
    with pytest.raises(ValueError, match=rf"'{part}' names no attention block.*down\.1, mid, up\.0"):
        find_taps(make_unet(), ["mid", part])


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (3, 4, 8, 12), (3, 4, 16, 4)])
def test_early_exit_gives_what_the_whole_forward_computes(shape):
    unet = make_unet()
    x, t, condition = inputs(shape)
    found = UNetFeatures(unet, unet, TAPS)(x, t, condition)
    for ours, theirs in zip(found, hooked(unet, TAPS, x, t, condition), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.shape[2:] == (shape[2] // 2, shape[3] // 2)


def test_nothing_behind_the_deepest_tap_runs_and_no_hook_stays():
    unet, ran = make_unet(), []
    for name in ("mid_block.resnets.1", "up_blocks.0", "conv_out"):
        unet.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    x, t, condition = inputs()
    UNetFeatures(unet, unet, TAPS)(x, t, condition)
    assert ran == []
    assert unet(x, t, **condition).sample.shape == x.shape  # the forward is whole again
    assert ran == ["mid_block.resnets.1", "up_blocks.0", "conv_out"]


def test_an_error_in_the_forward_is_raised_and_leaves_no_hook():
    unet = make_unet()
    x, t, condition = inputs()
    with pytest.raises(RuntimeError):
        UNetFeatures(unet, unet, TAPS)(x[:, :3], t, condition)
    assert unet(x, t, **condition).sample.shape == x.shape


def test_gradients_reach_the_latents_and_no_weight():
    unet = make_unet()
    x, t, condition = inputs()
    found = UNetFeatures(unet, unet, TAPS)(x, t, condition)
    sum(f.square().sum() for f in found).backward()
    reference = x.detach().clone().requires_grad_()
    sum(f.square().sum() for f in hooked(unet, TAPS, reference, t, condition)).backward()
    assert torch.equal(x.grad, reference.grad)
    assert x.grad.abs().min() > 0
    assert all(p.grad is None for p in unet.parameters())


def test_under_autocast():
    unet = make_unet()
    x, t, condition = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        found = UNetFeatures(unet, unet, TAPS)(x, t, condition)
        expected = hooked(unet, TAPS, x, t, condition)
    assert torch.is_autocast_enabled("cpu") is False
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def gradient_and_features(unet, call):
    x, t, condition = inputs()
    found = UNetFeatures(unet, call, TAPS)(x, t, condition)
    sum(f.square().sum() for f in found).backward()
    return x.grad, found


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_base_of_a_lora_is_the_feature_network_and_its_gradient_too(is_checkpointed):
    """With gradient checkpointing the backward pass runs the blocks again, when the adapter is on."""
    unet = lora_unet()
    if is_checkpointed:
        unet.enable_gradient_checkpointing(checkpointed)
    gradient, found = gradient_and_features(unet, without_adapter(unet))
    base = make_unet()
    expected_gradient, expected = gradient_and_features(base, base)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    assert torch.allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in unet.parameters())
    changed, _ = gradient_and_features(unet, unet)  # the adapter does change both
    assert not torch.allclose(changed, expected_gradient, rtol=0.1)


def test_checkpointed_student_beside_checkpointed_features():
    """One backward pass through the student, adapter on, and its base, adapter off: the gradients of both."""
    gradients = []
    for is_checkpointed in (False, True):
        unet = lora_unet()
        if is_checkpointed:
            unet.enable_gradient_checkpointing(checkpointed)
        x, t, condition = inputs()
        z = unet(x, t, **condition).sample
        found = UNetFeatures(unet, without_adapter(unet), TAPS)(z, t, condition)
        sum(f.square().sum() for f in found).backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters() if p.requires_grad})
    plain, again = gradients
    assert any(g is not None and g.abs().sum() > 0 for g in plain.values())
    for name, gradient in plain.items():
        assert (gradient is None) == (again[name] is None), name
        if gradient is not None:
            assert torch.allclose(gradient, again[name], rtol=1e-3, atol=1e-4 * gradient.abs().max().item()), name


def test_training_and_evaluation_mode_give_the_same():
    """The base of a LoRA is in training mode, a teacher of its own in evaluation mode; neither has dropout."""
    unet = make_unet()
    other = copy.deepcopy(unet).train()
    assert isinstance(other, UNet2DConditionModel)
    x, t, condition = inputs()
    a, b = (UNetFeatures(network, network, TAPS)(x, t, condition) for network in (unet, other))
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))

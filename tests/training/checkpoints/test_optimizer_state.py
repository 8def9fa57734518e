"""An optimizer's state through a checkpoint without pickle, bit for bit."""

import copy

import pytest
import torch
from torch import nn

from training.checkpoints.store import load_checkpoint, load_optimizer_tensors, optimizer_tensors, save_checkpoint


def network(width=72):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 64), nn.Linear(64, 3))  # 72 * 64 > 4096: quantized by bitsandbytes


def groups(net):
    return [{"params": list(net[0].parameters()), "lr": 1e-2, "betas": (0.0, 0.99)}, {"params": net[1].parameters()}]


def train(net, optimizer, steps):
    for step in range(steps):
        torch.manual_seed(step)
        net(torch.randn(4, net[0].in_features, dtype=net[0].weight.dtype)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1)


def adamw8bit(parameters):
    return pytest.importorskip("bitsandbytes").optim.AdamW8bit(parameters, lr=3e-3, weight_decay=0.1)


@pytest.mark.parametrize("make", [adamw, adamw8bit])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_through_a_checkpoint(tmp_path, make, dtype):
    """Saved after 3 steps and loaded: equal state, and 3 more steps end at the uninterrupted run's weights."""
    net = network().to(dtype)
    optimizer = make(groups(net))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)  # adds its initial_lr to the groups
    train(net, optimizer, 3)
    saved, expected = copy.deepcopy(net), copy.deepcopy(optimizer.state_dict())
    tensors, description = optimizer_tensors(optimizer)
    assert any(tensor.dtype == torch.uint8 for tensor in tensors.values()) == (make is adamw8bit)
    path = save_checkpoint(tmp_path, 3, {"optimizer": tensors}, {"optimizer": description})
    train(net, optimizer, 3)

    loaded = load_checkpoint(path)
    resumed = make(groups(saved))
    load_optimizer_tensors(resumed, loaded.tensors["optimizer"], loaded.state["optimizer"])
    assert_same(resumed.state_dict(), expected)
    assert isinstance(resumed.param_groups[0]["betas"], tuple)
    train(saved, resumed, 3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), saved.parameters()))
    again = load_checkpoint(path).tensors["optimizer"]
    assert all(torch.equal(again[key], loaded.tensors["optimizer"][key]) for key in again)  # the steps left it alone


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert type(one) is type(other)
        assert len(one) == len(other)
        for a, b in zip(one, other):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert type(one) is type(other)
        assert one == other


def test_state_is_a_copy():
    """What was taken doesn't change with the next step."""
    net = network(8)
    optimizer = adamw(net.parameters())
    train(net, optimizer, 1)
    tensors, _ = optimizer_tensors(optimizer)
    before = tensors["0/exp_avg"].clone()
    train(net, optimizer, 1)
    assert torch.equal(tensors["0/exp_avg"], before)
    assert tensors["0/step"].shape == ()


def test_fresh_optimizer_and_partial_state():
    """No state before the first step; a parameter without gradients has none later either."""
    net = network(8)
    net[1].bias.requires_grad_(False)
    optimizer = adamw(net.parameters())
    assert optimizer_tensors(optimizer)[0] == {}
    train(net, optimizer, 2)
    resumed = adamw(net.parameters())
    load_optimizer_tensors(resumed, *optimizer_tensors(optimizer))
    assert sorted(resumed.state_dict()["state"]) == [0, 1, 2]
    assert_same(resumed.state_dict(), optimizer.state_dict())


def test_mismatch_is_refused():
    """Other groups, other numbers of parameters, other shapes (torch itself checks none), missing tensors."""
    net = network(8)
    optimizer = adamw(groups(net))
    train(net, optimizer, 1)
    tensors, description = optimizer_tensors(optimizer)
    with pytest.raises(ValueError, match=r"groups of \[2, 2\] parameters, this one has \[4\]"):
        load_optimizer_tensors(adamw(net.parameters()), tensors, description)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 .*shape \[64, 8\], but is now \[64, 9\]"):
        load_optimizer_tensors(adamw(groups(network(9))), tensors, description)
    del tensors["2/exp_avg_sq"]
    with pytest.raises(ValueError, match="first 2/exp_avg_sq"):
        load_optimizer_tensors(adamw(groups(net)), tensors, description)

"""Conversion of a torch optimizer's state to tensors and JSON values, for checkpoints without pickle."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from training.checkpoints.manifest import as_lists
from training.sharding.tensors import shard_like


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's `state_dict` in two parts: tensors (copied to the CPU) by "parameter/name", the rest as JSON."""
    return copy_optimizer_tensors(optimizer, lambda tensor: tensor), describe_optimizer(optimizer)


def copy_optimizer_tensors(optimizer: torch.optim.Optimizer, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The tensors of `optimizer_tensors`. `gather` makes each of them whole, if they are sharded."""
    flat = _flatten(optimizer.state_dict()["state"])
    tensors = ((key, gather(value.detach())) for key, value in flat if isinstance(value, Tensor))
    return {key: tensor.to("cpu", copy=True) for key, tensor in tensors}


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The part of `optimizer_tensors` that JSON holds."""
    saved = optimizer.state_dict()
    flat = dict(_flatten(saved["state"]))
    groups = [{k: as_lists(v) for k, v in group.items() if k != "params"} for group in saved["param_groups"]]
    return {
        "tensors": sorted(key for key, value in flat.items() if isinstance(value, Tensor)),
        "values": {key: value for key, value in flat.items() if not isinstance(value, Tensor)},
        "groups": groups,
        "shapes": _shapes(optimizer),
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], description: dict[str, Any]
) -> None:
    """Restore the result of `optimizer_tensors`, bit for bit, in an optimizer over the same parameters.

    Of whole tensors, each process of a sharded run keeps its part, whatever the number of processes that saved them.

    Raises:
        ValueError: the groups, the number or the shapes of the parameters differ, or tensors are missing or unexpected.
    """
    _check_shapes(description["shapes"], _shapes(optimizer))
    if different := sorted(set(description["tensors"]) ^ set(tensors)):
        raise ValueError(f"the optimizer's tensors are not those that were saved, first {different[0]}")
    # torch keeps the very tensors it is given: without the copies, the next step would change the checkpoint's.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    copies = {key: _part(parameters[int(key.split("/")[0])], tensor) for key, tensor in tensors.items()}
    groups, start = [], 0
    for saved, current in zip(description["groups"], optimizer.param_groups):
        options = {k: tuple(v) if isinstance(current.get(k), tuple) else v for k, v in saved.items()}
        end = start + len(current["params"])
        groups.append(options | {"params": list(range(start, end))})
        start = end
    optimizer.load_state_dict({"state": _unflatten(description["values"] | copies), "param_groups": groups})


def _part(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A copy of a `tensor` of the state of `parameter`: of the part that this process holds, if that is sharded."""
    return shard_like(parameter, tensor).clone() if tensor.shape == parameter.shape else tensor.clone()


def _flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):  # bitsandbytes nests its quantized moments
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _unflatten(flat: dict[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        parameter, *nested, name = key.split("/")
        branch = state.setdefault(int(parameter), {})
        for part in nested:
            branch = branch.setdefault(part, {})
        branch[name] = value
    return state


def _shapes(optimizer: torch.optim.Optimizer) -> list[list[list[int]]]:
    return [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]


def _check_shapes(saved: list[list[list[int]]], current: list[list[list[int]]]) -> None:
    counts = [len(group) for group in saved], [len(group) for group in current]
    if counts[0] != counts[1]:
        raise ValueError(f"the saved optimizer has groups of {counts[0]} parameters, this one has {counts[1]}")
    for number, (then, now) in enumerate(zip(saved, current)):
        for place, (old, new) in enumerate(zip(then, now)):
            if old != new:
                raise ValueError(f"parameter {place} of group {number} was saved with shape {old}, but is now {new}")

"""Sharded tensors, whole and in parts. What is not sharded passes through unchanged."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def gather(tensor: Tensor, is_kept: bool = True) -> Tensor:
    """All of `tensor` on the CPU if it is sharded. To be called by every process in the same order.

    Args:
        is_kept: False returns an empty tensor and keeps no memory, at a process that does not need the result.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.detach().full_tensor()
    return full.cpu() if is_kept else full.new_empty(0)


def shard_like(like: Tensor, tensor: Tensor) -> Tensor:
    """This process's part of a `tensor` that every process has whole, if `like` is sharded. No communication."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of `tensor`; it may be empty. Shares memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The norm of all gradients as one vector, over all shards. A plain scalar, the same at every process."""
    norm = nn.utils.get_total_norm(list(gradients))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def local_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that this process holds of `tensors`."""
    parts = map(local_part, tensors)
    return sum(part.numel() * part.element_size() for part in parts)


def copy_(target: Tensor, source: Tensor) -> None:
    """Copy a whole `source`, on any device, into `target`, which may be sharded."""
    with torch.no_grad():
        target.copy_(shard_like(target, source))

"""Meter for FLOPs and memory that intercepts torch's operations as they are dispatched."""

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

ALIGNMENT = 512  # bytes; CUDA's allocator rounds the size of a tensor up to a multiple


def _attention(query: Tensor, key: Tensor, value: Tensor, *_, out_val=None, **__) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_, out_val=None, **__) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


# The formulas of torch, and those for the attention kernels on CPU, which torch does not have.
FORMULAS = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Meter(TorchDispatchMode):
    """Context manager that counts FLOPs and memory. It does not use module hooks, so unlike torch's `FlopCounterMode`
    and `MemTracker` it supports `autograd.grad` (R1) and recomputation.

    Attributes:
        flops: FLOPs so far. One multiply-add counts as 2; operations without a formula in torch are not counted.
        live: bytes of all existing tensors that were held or created under the meter; shared memory counts once.
        peak: maximum of `live`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.live = self.peak = 0
        self.storages: dict[int, weakref.ref] = {}  # by address

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Also count tensors that were created before, such as weights."""
        for tensor in tensors:
            self._add(tensor)

    def reset(self) -> None:
        """Reset FLOPs to zero and the peak to the current memory."""
        self.flops, self.peak = 0, self.live

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
        if key not in self.storages:
            self.storages[key] = weakref.ref(storage, lambda _: self._remove(key, size))
            self.live += size
            self.peak = max(self.peak, self.live)

    def _remove(self, key: int, size: int) -> None:
        del self.storages[key]
        self.live -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run `func` and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if formula := FORMULAS.get(func._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=out)
        self.hold(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out

"""FLOPs and memory of whatever runs inside, read off torch's operations as they are dispatched."""

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

ALIGNMENT = 512  # bytes that CUDA's allocator rounds a tensor up to


def _attention(query: Tensor, key: Tensor, value: Tensor, *_, out_val=None, **__) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_, out_val=None, **__) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


# torch's formulas, and those of attention's CPU kernels, which it lacks.
FORMULAS = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Meter(TorchDispatchMode):
    """Counts while it is entered. It hooks into no module, so it can follow `autograd.grad` (R1) and recomputation,
    at which torch's `FlopCounterMode` and `MemTracker` stop.

    Attributes:
        flops: so far; 1 multiply-add counts as 2, and what torch has no formula for as nothing.
        live: bytes of all tensors that there are, of those held or made under the meter; shared memory counts once.
        peak: the most that `live` has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.live = self.peak = 0
        self.storages: dict[int, weakref.ref] = {}  # by address

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made before, weights for instance."""
        for tensor in tensors:
            self._add(tensor)

    def reset(self) -> None:
        """Count anew, with what there is now."""
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

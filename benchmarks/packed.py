"""Stand-ins for bitsandbytes' quantized layers, which can't be without contents: what they store and what they do."""

from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
BLOCK = 64  # 4-bit weights that share a scale


class _Unpacked(torch.autograd.Function):
    """A product with weights that are unpacked for it, and again for its gradient, as bitsandbytes does."""

    @staticmethod
    def forward(ctx, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return (x.bfloat16() @ torch.empty(shape, dtype=torch.bfloat16).t()).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return (grad.bfloat16() @ torch.empty(ctx.shape, dtype=torch.bfloat16)).to(grad.dtype), None, None


class PackedLinear(nn.Linear):
    """Stands for bitsandbytes' layers, which can't be without contents: 8 or 4 bits a weight, and their scales."""

    def __init__(self, linear: nn.Linear, bits: int):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        rows, columns = linear.weight.shape
        self.shape, self.bias = (rows, columns), linear.bias
        self.weight = nn.Parameter(torch.empty(rows * columns * bits // 8, dtype=torch.uint8), requires_grad=False)
        # LLM.int8 has a float32 scale a row; NF4 one a block, in 8 bits (and scales of those, next to nothing).
        scales = torch.empty(rows) if bits == 8 else torch.empty(rows * columns // BLOCK, dtype=torch.uint8)
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`."""
        out = _Unpacked.apply(x, self.weight, self.shape)
        return out if self.bias is None else out + self.bias


def pack_linears(network: Network, bits: int) -> Network:
    """`training.models.quantization.quantize_linears` for networks without contents. In place."""
    for name, child in network.named_children():
        if isinstance(child, nn.Linear):
            setattr(network, name, PackedLinear(child, bits))
        else:
            pack_linears(child, bits)
    return network

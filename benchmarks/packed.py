"""Replacements for the quantized layers of bitsandbytes, which do not support fake tensors."""

from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
BLOCK = 64  # 4-bit weights that share a scale


class _Unpacked(torch.autograd.Function):
    """A matrix product whose weights are unpacked in the forward and again in the backward pass, as in bitsandbytes."""

    @staticmethod
    def forward(ctx, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return (x.bfloat16() @ torch.empty(shape, dtype=torch.bfloat16).t()).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return (grad.bfloat16() @ torch.empty(ctx.shape, dtype=torch.bfloat16)).to(grad.dtype), None, None


class PackedLinear(nn.Linear):
    """Replacement for a quantized layer of bitsandbytes, with 8 or 4 bits per weight, and scales."""

    def __init__(self, linear: nn.Linear, bits: int):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        rows, columns = linear.weight.shape
        self.shape, self.bias = (rows, columns), linear.bias
        self.weight = nn.Parameter(torch.empty(rows * columns * bits // 8, dtype=torch.uint8), requires_grad=False)
        # LLM.int8 has a float32 scale per row; NF4 has an 8-bit scale per block (and negligible scales of scales).
        scales = torch.empty(rows) if bits == 8 else torch.empty(rows * columns // BLOCK, dtype=torch.uint8)
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `(..., in)`. Returns `(..., out)`."""
        out = _Unpacked.apply(x, self.weight, self.shape)
        return out if self.bias is None else out + self.bias


def pack_linears(network: Network, bits: int) -> Network:
    """Like `training.models.quantization.quantize_linears`, for networks with fake tensors. In place."""
    for name, child in network.named_children():
        if isinstance(child, nn.Linear):
            setattr(network, name, PackedLinear(child, bits))
        else:
            pack_linears(child, bits)
    return network

"""Quantization of a frozen UNet's linear layers to 8 or 4 bits with bitsandbytes."""

from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def quantize_linears(network: Network, bits: int) -> Network:
    """Quantize every `nn.Linear` of a frozen `network` in place: LLM.int8 (8) or NF4 (4). Convolutions are not changed.

    diffusers' quantizer does the same while loading, but requires a GPU; bitsandbytes itself has CPU kernels.

    Args:
        network: frozen network on the device and in the precision that it computes in.
        bits: 8 or 4.
    """
    import bitsandbytes

    for name, child in network.named_children():
        if isinstance(child, nn.Linear):
            setattr(network, name, _quantized(bitsandbytes.nn, child, bits))
        else:
            quantize_linears(child, bits)
    return network


def _quantized(layers, linear: nn.Linear, bits: int) -> nn.Module:
    weight, device = linear.weight.data, linear.weight.device
    size = (linear.in_features, linear.out_features, linear.bias is not None)
    if bits == 8:
        new = layers.Linear8bitLt(*size, has_fp16_weights=False)
        new.weight = layers.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    else:
        new = layers.Linear4bit(*size, compute_dtype=weight.dtype, quant_type="nf4")
        new.weight = layers.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4", module=new)
        # Otherwise some CPUs repack the weights in place at the first inference, which fails for small layers.
        new.support_avx512bf16_for_cpu = False
    new.bias = linear.bias
    return new.to(device)  # quantizes


def keep_norms_in_float32(network: nn.Module) -> nn.Module:
    """Convert the norm layers to float32, in place, to train an adapter on a quantized base.

    bitsandbytes returns float32 for float32 input, which norm layers in half precision do not accept.
    """
    for module in network.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.float()
    return network

"""bfloat16 for UNets of epsilon students, with float32 for the layers whose rounding errors the sampler amplifies.

At the last timestep, an epsilon student computes x0 = (n - sigma eps) / alpha = 14.65 n - 14.61 eps (for Stable
Diffusion's noise schedule), so the rounding error of eps in bfloat16, which has 8 bits of precision, is multiplied by
14.6. At this timestep, eps mostly consists of the input noise, which passes from the UNet's first layers through the
outermost skip connections to its last layers. `keep_output_in_float32` keeps these layers in float32.
"""

# pyright: reportPrivateImportUsage=false

import inspect
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from .stock import StockPipeline


def keep_output_in_float32(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Make `unet` compute its outermost layers in float32, in place: input, first down block, last up block, output.

    This has an effect in bfloat16 only, both with bfloat16 weights and with float32 weights under bfloat16 autocast;
    float32 and float16 are unchanged, bit for bit. bfloat16 weights of the outermost layers are cast to float32, the
    other weights are not changed. The input may be float32 or bfloat16, the output is float32. `unet.dtype` is still
    bfloat16, and so are all weights in `state_dict` and in the files of `save_pretrained`.

    In a UNet with the blocks of Stable Diffusion, briefly trained on latents of unit variance, the RMS error of a
    one-step latent (standard deviation 1.9) falls from 0.070 to 0.004 under autocast, and from 0.080 to 0.004 with
    bfloat16 weights. Without the first down block it would be 0.017 and 0.025. Weights that have
    already been rounded to bfloat16 cannot be restored, and leave 0.033; `to_bfloat16` rounds only the other ones. The
    outermost blocks have the highest resolution, so these layers are 38 % of the operations of Stable Diffusion 1.5
    (512 pixels) and 7 % of SDXL (1024 pixels). TF32, if enabled, reduces their cost and has the precision of float16.

    Call it before the UNet is compiled or wrapped for distribution, and after adapters have been added to `conv_in` or
    `conv_out`, which replaces these modules. Further calls change nothing. It uses hooks, which work together with
    gradient checkpointing, adapters, offloading, `torch.compile` and `copy.deepcopy`.

    Args:
        unet: UNet that takes samples `(B, C, H, W)`; this is only useful if it predicts epsilon.

    Returns:
        `unet` itself.
    """
    precise = _precise_names(unet)
    if unet.dtype == torch.bfloat16:
        _set_dtypes(unet, precise, torch.bfloat16)
    for name, module in _stages(unet):
        if _cast_inputs not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_cast_inputs, with_kwargs=True)
            if name in precise:
                module.register_forward_pre_hook(_suspend_autocast, with_kwargs=True, prepend=True)
                module.register_forward_hook(_resume_autocast, always_call=True)
    return unet


def is_kept_in_float32(module: nn.Module) -> bool:
    """Whether `keep_output_in_float32` made `module`, a stage of a UNet, compute in float32."""
    return _suspend_autocast in module._forward_pre_hooks.values()


def to_bfloat16(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Cast `unet` to bfloat16, in place, except for the layers of `keep_output_in_float32`, which are not rounded."""
    _set_dtypes(unet, _precise_names(unet), torch.bfloat16)
    return keep_output_in_float32(unet)


def _precise_names(unet: UNet2DConditionModel) -> list[str]:
    """The names of the modules kept in float32."""
    names = ["conv_in", "down_blocks.0", f"up_blocks.{len(unet.up_blocks) - 1}", "conv_norm_out", "conv_out"]
    return [name for name in names if name in dict(_stages(unet))]


def _stages(unet: UNet2DConditionModel) -> list[tuple[str, nn.Module]]:
    """The modules that a forward pass calls in sequence, with names: children of the UNet, and blocks of its lists."""
    found = []
    for name, child in unet.named_children():
        blocks = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
        found += [(f"{name}.{index}".rstrip("."), block) for index, block in blocks]
    return [(name, module) for name, module in found if _dtype(module) is not None]


def _set_dtypes(unet: UNet2DConditionModel, precise: list[str], dtype: torch.dtype) -> None:
    """Cast the modules `precise` to float32 and all others to `dtype`."""
    for name, module in _stages(unet):
        module.to(torch.float32 if name in precise else dtype)
    if unet._keep_in_fp32_modules != precise:
        # diffusers ignores the modules in this attribute when it determines the model's dtype.
        vars(unet)["_keep_in_fp32_modules"] = precise
        unet.register_state_dict_post_hook(_round_precise)


def _round_precise(unet: UNet2DConditionModel, weights: dict[str, Any], prefix: str, _: Any) -> None:
    """Cast all weights in a state dict to `unet.dtype`, as in a UNet that was loaded in this dtype."""
    for name in vars(unet)["_keep_in_fp32_modules"]:
        for key in [key for key in weights if key.startswith(f"{prefix}{name}.")]:
            weights[key] = weights[key].to(unet.dtype)


def _dtype(module: nn.Module) -> torch.dtype | None:
    """The dtype of the first floating-point parameter, None if there is none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """`value` with every floating-point tensor in it cast to `dtype`."""
    if torch.is_tensor(value):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(_cast(part, dtype) for part in value)
    if isinstance(value, dict):
        return {key: _cast(part, dtype) for key, part in value.items()}
    return value


def _cast_inputs(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook that casts the inputs of a stage to the dtype of its weights, unless autocast does so.

    Autocast does not cast the inputs of normalization layers on a CPU, so those of bfloat16 weights are always cast.
    """
    dtype = _dtype(module)
    is_cast = dtype == torch.float32 and _is_autocast(_device_type(args, kwargs))
    if dtype not in (torch.bfloat16, torch.float32) or is_cast:
        return args, kwargs
    return _cast(args, dtype), _cast(kwargs, dtype)


def _suspend_autocast(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook that disables bfloat16 autocast for a stage in float32."""
    device = _device_type(args, kwargs)
    if _is_autocast(device) and torch.get_autocast_dtype(device) == torch.bfloat16 and _dtype(module) == torch.float32:
        torch.set_autocast_enabled(device, False)
        vars(module)["_suspended_autocast"] = device


def _resume_autocast(module: nn.Module, _: tuple, __: Any) -> None:
    """Forward hook that enables autocast again after a stage in float32, also if it has failed."""
    device = vars(module).pop("_suspended_autocast", None)
    if device is not None:
        torch.set_autocast_enabled(device, True)


def _is_autocast(device_type: str) -> bool:
    return bool(device_type) and torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _device_type(*values: Any) -> str:
    """Device type of the first tensor in the inputs, because offloaded weights may be on another device."""
    for value in values:
        if torch.is_tensor(value):
            return value.device.type
        if isinstance(value, list | tuple | dict):
            found = _device_type(*(value.values() if isinstance(value, dict) else value))
            if found:
                return found
    return ""


class Float32LatentsMixin(StockPipeline):
    """Makes a stock pipeline use float32 latents if its UNet is in bfloat16 and predicts epsilon.

    The scheduler then computes in float32, and the noise of a seed is that of a float32 pipeline.
    """

    def _needs_float32(self) -> bool:
        unet, scheduler = getattr(self, "unet", None), getattr(self, "scheduler", None)
        is_bfloat16 = unet is not None and unet.dtype == torch.bfloat16
        return is_bfloat16 and scheduler is not None and scheduler.config.get("prediction_type") == "epsilon"

    def _keep_precision(self) -> None:
        """Prepare UNet and autoencoder for float32 latents, if they need to be; see `keep_output_in_float32`."""
        if not self._needs_float32():
            return
        keep_output_in_float32(self.unet)
        vae = getattr(self, "vae", None)
        for part in (getattr(vae, "post_quant_conv", None), getattr(vae, "decoder", None)):
            if part is not None and _cast_inputs not in part._forward_pre_hooks.values():
                part.register_forward_pre_hook(_cast_inputs, with_kwargs=True)

    def register_modules(self, **modules) -> None:
        """Register the components, as in `DiffusionPipeline`."""
        super().register_modules(**modules)
        self._keep_precision()

    def to(self, *args, **kwargs):
        """Move or cast the pipeline, as in `DiffusionPipeline`."""
        super().to(*args, **kwargs)
        self._keep_precision()
        return self

    def prepare_latents(self, *args, **kwargs) -> Any:
        """Prepare latents as in the stock class, in float32 if necessary.

        Noise is drawn in float32, unless an input image is encoded in the same call, in the autoencoder's dtype.
        """
        if not self._needs_float32():
            return super().prepare_latents(*args, **kwargs)
        bound = inspect.signature(super().prepare_latents).bind(*args, **kwargs)
        if bound.arguments.get("image") is None:
            bound.arguments["dtype"] = torch.float32
        return _cast(super().prepare_latents(*bound.args, **bound.kwargs), torch.float32)

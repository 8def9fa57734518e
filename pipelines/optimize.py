"""`pipe.optimize()`: faster inference by compilation, memory format, fused projections and a prompt cache."""

# pyright: reportPrivateImportUsage=false

import functools
import weakref
from collections import OrderedDict
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0

from .stock import StockPipeline

CACHED_PROMPTS = 64  # calls whose embeddings are kept: for SDXL 0.3 MB each in half precision


class OptimizeMixin(StockPipeline):
    """Adds `optimize` to a pipeline with an autoencoder and a UNet, or a transformer in its place."""

    @property
    def _denoiser(self) -> Any:
        """The network that is called in each step."""
        return getattr(self, "unet", None) or self.transformer

    def optimize(
        self,
        compile: bool | dict[str, Any] = True,
        channels_last: bool = True,
        tiny_vae: str | AutoencoderTiny | None = None,
        fuse_qkv: bool = True,
        cache_prompts: bool = True,
    ):
        """Make later calls faster, in place. The images stay the same up to rounding, except with `tiny_vae`.

        The modules are not replaced, so saving, `from_pipe`, offloading and adapters work as before. A second call does
        not disable what an earlier one has enabled, except for `cache_prompts`.

        Args:
            compile: compile the network and the decoder with `torch.compile`. The first call with an image size is
                slow, because it compiles. A dict gives the arguments, such as `{"mode": "max-autotune"}`.
            channels_last: use the channels-last memory format, which is fastest for convolutions on most devices.
            tiny_vae: an `AutoencoderTiny` trained for this family's latents, or the repository or folder to load it
                from. It replaces `vae`, also when saving. It takes much less time and memory, and textures are somewhat
                coarser.
            fuse_qkv: compute queries, keys and values in one matrix product. Attention layers with a LoRA or an
                IP-Adapter are not fused, and loading a LoRA later separates the projections again, because adapters act
                on the separate weights.
            cache_prompts: keep the embeddings of the last prompts, so that the text encoders are skipped when a prompt
                is used again. A changed encoder or tokenizer is detected; outputs of encoders with adapters are not
                cached.

        Returns:
            The pipeline itself.

        Raises:
            ValueError: `tiny_vae` has another scale factor or number of latent channels than `vae`.
        """
        if tiny_vae is not None:
            self.register_modules(vae=_matching(tiny_vae, self.vae))
        if fuse_qkv:
            for network in (self._denoiser, self.vae):
                _fuse(network)
        if channels_last:
            self._denoiser.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)
        if compile:
            for module in (self._denoiser, self.vae.decoder):
                if module._compiled_call_impl is None:  # compile in place, so that the weights keep their names
                    module.compile(**compile if isinstance(compile, dict) else {})
        self.__dict__.pop("encode_prompt", None)
        if cache_prompts:  # set on the instance, whose state is shared with image-to-image and inpainting
            self.__dict__["encode_prompt"] = _PromptCache(self)
        return self

    def load_lora_weights(self, *args, **kwargs):
        """Load a LoRA as in stock pipelines, after separating the projections that `optimize` has fused."""
        _unfuse(self._denoiser)
        return super().load_lora_weights(*args, **kwargs)


def _matching(tiny_vae: str | AutoencoderTiny, vae: AutoencoderKL | AutoencoderTiny) -> AutoencoderTiny:
    """Return `tiny_vae`, loaded if necessary, on the device and in the dtype of `vae`."""
    if not isinstance(tiny_vae, AutoencoderTiny):
        tiny_vae = AutoencoderTiny.from_pretrained(tiny_vae)
    configs: list[Any] = [tiny_vae.config, vae.config]
    plans = [(2 ** (len(config.block_out_channels) - 1), config.latent_channels) for config in configs]
    if plans[0] != plans[1]:
        raise ValueError(
            f"tiny_vae has a scale factor of {plans[0][0]} and {plans[0][1]} latent channels, but this pipeline's vae "
            f"has {plans[1][0]} and {plans[1][1]}. Use one that was trained for its latents, for "
            "example madebyollin/taesd or madebyollin/taesdxl."
        )
    torch.nn.Module.to(tiny_vae, device=vae.device, dtype=vae.dtype)
    return tiny_vae.eval()


def _fuse(network: Any) -> None:
    """Fuse the attention projections, unless they have adapters, and hide the fused copies from the state dict."""
    processors = getattr(network, "attn_processors", {}).values()  # a tiny autoencoder has none
    stock = all(type(processor) is AttnProcessor2_0 for processor in processors)
    if not processors or not stock or getattr(network, "peft_config", None):
        return
    network.fuse_qkv_projections()
    network.register_state_dict_post_hook(_hide_fused)


def _hide_fused(_: torch.nn.Module, weights: dict[str, Any], *__) -> None:
    for name in [name for name in weights if ".to_qkv." in name or ".to_kv." in name]:
        del weights[name]


def _unfuse(network: torch.nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, Attention) and module.fused_projections:
            for name in {"to_qkv", "to_kv"} & dict(module.named_children()).keys():
                delattr(module, name)
            module.fused_projections = False
            if isinstance(module.processor, FusedAttnProcessor2_0):
                unfused: Any = AttnProcessor2_0()  # set_processor is declared for one of the processors only
                module.set_processor(unfused)


class _PromptCache:
    """Replacement for a pipeline's `encode_prompt` that caches the last `CACHED_PROMPTS` results for text prompts."""

    def __init__(self, pipe: Any):
        self._pipe, self._encode, self._answers = pipe, pipe.encode_prompt, OrderedDict()
        functools.update_wrapper(self, self._encode)

    def __call__(self, *args, **kwargs):
        arguments = _frozen((args, kwargs))
        encoders = self._parts("text_encoder", "text_encoder_2", "text_encoder_3")
        if arguments is None or any(getattr(encoder, "peft_config", None) for encoder in encoders):
            return self._encode(*args, **kwargs)
        tokenizers = [(weakref.ref(part), len(part)) for part in self._parts("tokenizer", "tokenizer_2", "tokenizer_3")]
        key = (arguments, *tokenizers, *map(_state, encoders))
        answer = self._answers.pop(key, None) or self._encode(*args, **kwargs)
        self._answers[key] = answer  # the most recent one is last
        if len(self._answers) > CACHED_PROMPTS:
            self._answers.popitem(last=False)
        return tuple(e.clone() if torch.is_tensor(e) else e for e in answer)  # the caller may modify its copy

    def _parts(self, *names: str) -> list[Any]:
        parts = [getattr(self._pipe, name, None) for name in names]
        return [part for part in parts if part is not None]


def _frozen(value: Any) -> Any:
    """Return `value` as a dictionary key, or None if it contains tensors, which are not cached."""
    if isinstance(value, dict):
        value = sorted(value.items())
    if isinstance(value, list | tuple):
        parts = tuple(map(_frozen, value))
        return None if None in parts else (type(value).__name__, *parts)
    return (type(value).__name__, value) if not torch.is_tensor(value) else None


def _state(module: torch.nn.Module) -> tuple:
    """Return a value that changes if the module or a weight is replaced, cast or modified, but not by offloading."""
    return weakref.ref(module), tuple((id(p), p._version, p.dtype) for p in module.parameters())

"""`pipe.optimize()`: the same images sooner. Part of the published file like `few_step.py`, so it imports as little."""

import functools
import weakref
from collections import OrderedDict
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0

CACHED_PROMPTS = 64  # calls' worth of embeddings: in SDXL, 0.3 MB each at half precision


class OptimizeMixin:
    """Adds `optimize` to a pipeline with a UNet and an autoencoder."""

    def optimize(
        self,
        compile: bool | dict[str, Any] = True,
        channels_last: bool = True,
        tiny_vae: str | AutoencoderTiny | None = None,
        fuse_qkv: bool = True,
        cache_prompts: bool = True,
    ):
        """Make later calls faster, in place. The images stay the same up to rounding, except with `tiny_vae`.

        The modules stay what they are, only with another way to run them: saving, `from_pipe`, offloading and adapters
        work as before. What an argument turns on isn't turned off by a second call, but for `cache_prompts`.

        Args:
            compile: `torch.compile` the UNet and the decoder: pays on the second call of a size, for the first one
                compiles. A dict is its arguments, such as `{"mode": "max-autotune"}`.
            channels_last: the memory layout that convolutions prefer on most devices.
            tiny_vae: an `AutoencoderTiny` trained for this family's latents, or where it is loaded from. It replaces
                `vae` (and is saved in its place): much less time and memory, somewhat coarser texture.
            fuse_qkv: compute queries, keys and values in one product. Only while nothing else has changed the UNet's
                attention: with a LoRA or an IP-Adapter it is left as it is, and a LoRA loaded later undoes it, since
                adapters act on the separate weights.
            cache_prompts: keep the embeddings of the last prompts, so that other seeds of one prompt skip the text
                encoders. Changed encoders or tokenizers are noticed; adapted ones aren't cached.

        Returns:
            The pipeline itself.

        Raises:
            ValueError: for a `tiny_vae` of another size or other latents than `vae` has.
        """
        if tiny_vae is not None:
            self.register_modules(vae=_matching(tiny_vae, self.vae))
        if fuse_qkv:
            for network in (self.unet, self.vae):
                _fuse(network)
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)
        if compile:
            for module in (self.unet, self.vae.decoder):
                if module._compiled_call_impl is None:  # in place, so that the weights keep their names
                    module.compile(**compile if isinstance(compile, dict) else {})
        self.__dict__.pop("encode_prompt", None)
        if cache_prompts:  # on the instance: so image-to-image and inpainting, which share its state, have it too
            self.__dict__["encode_prompt"] = _PromptCache(self)
        return self

    def load_lora_weights(self, *args, **kwargs):
        """As in stock pipelines; projections that `optimize` fused come apart first, or the adapter would miss them."""
        _unfuse(self.unet)
        return super().load_lora_weights(*args, **kwargs)


def _matching(tiny_vae: str | AutoencoderTiny, vae: AutoencoderKL | AutoencoderTiny) -> AutoencoderTiny:
    """`tiny_vae`, loaded if need be, where `vae` is and in its precision."""
    if not isinstance(tiny_vae, AutoencoderTiny):
        tiny_vae = AutoencoderTiny.from_pretrained(tiny_vae)
    plans = [(2 ** (len(v.config.block_out_channels) - 1), v.config.latent_channels) for v in (tiny_vae, vae)]
    if plans[0] != plans[1]:
        raise ValueError(
            f"tiny_vae makes {plans[0][0]} pixels of a latent with {plans[0][1]} channels, but this pipeline's vae "
            f"{plans[1][0]} of {plans[1][1]}. Use one made for it, such as madebyollin/taesd or madebyollin/taesdxl."
        )
    return tiny_vae.to(vae.device, vae.dtype).eval()


def _fuse(network: torch.nn.Module) -> None:
    """Fuse attention's projections, unless they are adapted. The fused copies never show among the weights."""
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
                module.set_processor(AttnProcessor2_0())


class _PromptCache:
    """A pipeline's `encode_prompt`, which remembers its last `CACHED_PROMPTS` answers to text."""

    def __init__(self, pipe: Any):
        self._pipe, self._encode, self._answers = pipe, pipe.encode_prompt, OrderedDict()
        functools.update_wrapper(self, self._encode)

    def __call__(self, *args, **kwargs):
        arguments = _frozen((args, kwargs))
        encoders = self._parts("text_encoder", "text_encoder_2")
        if arguments is None or any(getattr(encoder, "peft_config", None) for encoder in encoders):
            return self._encode(*args, **kwargs)
        tokenizers = [(weakref.ref(part), len(part)) for part in self._parts("tokenizer", "tokenizer_2")]
        key = (arguments, *tokenizers, *map(_state, encoders))
        answer = self._answers.pop(key, None) or self._encode(*args, **kwargs)
        self._answers[key] = answer  # the latest comes last
        if len(self._answers) > CACHED_PROMPTS:
            self._answers.popitem(last=False)
        return tuple(e.clone() if torch.is_tensor(e) else e for e in answer)  # callers may write into theirs

    def _parts(self, *names: str) -> list[Any]:
        parts = [getattr(self._pipe, name, None) for name in names]
        return [part for part in parts if part is not None]


def _frozen(value: Any) -> Any:
    """`value` as something to look up by; None if there are tensors in it, which aren't worth it."""
    if isinstance(value, dict):
        value = sorted(value.items())
    if isinstance(value, list | tuple):
        parts = tuple(map(_frozen, value))
        return None if None in parts else (type(value).__name__, *parts)
    return (type(value).__name__, value) if not torch.is_tensor(value) else None


def _state(module: torch.nn.Module) -> tuple:
    """Changes whenever the module or a weight of it is replaced, cast or written to; not when it is offloaded."""
    return weakref.ref(module), tuple((id(p), p._version, p.dtype) for p in module.parameters())

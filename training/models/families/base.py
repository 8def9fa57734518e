"""What Stable Diffusion and SDXL repositories have in common: where their parts are and how they are loaded."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, cast

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedModel

from discriminator.pretrained import NO_CODE, load_frozen
from distillation.student import Condition
from pipelines import ADDPipeline, ADDXLPipeline
from training.models.sources import load_config, loading


class Family:
    """A text-to-image repo in diffusers' layout. Reads the scheduler's config at once, and weights part by part.

    The parts are loaded separately, because a run does not always need all of them: with cached captions, for
    instance, the text encoders leave the device. Everything that is loaded is frozen and in eval mode.

    Attributes:
        scheduler: for its betas and prediction type only.
        vae, unet: after `load_vae` and `load_unet`.
    """

    pipeline_class: ClassVar[type[ADDPipeline | ADDXLPipeline]]
    stock_class: ClassVar[str]  # of model_index.json
    script: ClassVar[str]  # that trains students of this family
    text_encoders: ClassVar[dict[str, type[PreTrainedModel]]]  # subfolder: class
    tokenizers: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        variant: str | None = None,
        cache_dir: str | None = None,
        vae_name: str | None = None,
        vae_revision: str | None = None,
        flag: str = "pretrained_teacher_model",
    ):
        """Read the configs of the scheduler and the autoencoder.

        Args:
            name: Hub id or folder.
            revision: branch, tag or commit of the Hub repo `name`.
            variant: of its weight files, such as fp16.
            cache_dir: where downloads are kept.
            vae_name: Hub id or folder of an autoencoder that is used in place of the repo's own.
            vae_revision: branch, tag or commit of `vae_name`.
            flag: that `name` was given by, for errors.

        Raises:
            OptionError: a config cannot be read.
        """
        self.source = (name, revision, variant, cache_dir, vae_name, vae_revision, flag)
        self.name, self.vae_name, self.vae_revision, self.flag = name, vae_name, vae_revision, flag
        self.where: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir}
        self.variant = variant
        with self._loading():
            self.index = load_config(DiffusionPipeline, name, **self.where)
            scheduler = DDPMScheduler.from_pretrained(name, subfolder="scheduler", **self.where)
            self.scheduler = cast(DDPMScheduler, scheduler)
        with self._loading_vae():
            self.vae_config = load_config(AutoencoderKL, **self._vae_source())

    def unloaded(self) -> "Family":
        """The same repo without its weights."""
        return type(self)(*self.source)

    @property
    def scaling_factor(self) -> float:
        """Of the latents. Known before any weight is loaded; where it differs, so do the latent spaces."""
        return self.vae_config.get("scaling_factor", 0.18215)

    def _loading(self) -> AbstractContextManager:
        return loading(self.flag, self.name, f"a whole {self.stock_class} in diffusers' layout")

    def _loading_vae(self) -> AbstractContextManager:
        if self.vae_name is None:
            return self._loading()
        return loading("pretrained_vae_model_name_or_path", self.vae_name, "an AutoencoderKL")

    def _vae_source(self) -> dict:
        """Where the autoencoder is: the repo's subfolder, or a repo that is nothing but an autoencoder."""
        if self.vae_name is None:
            return {"pretrained_model_name_or_path": self.name, "subfolder": "vae", **self.where}
        where = {"revision": self.vae_revision, "cache_dir": self.where["cache_dir"]}
        return {"pretrained_model_name_or_path": self.vae_name, **where}

    def vae_place(self) -> tuple[str, str, str | None, str | None]:
        """Repo, subfolder, revision and cache folder of the autoencoder."""
        source = self._vae_source()
        name, cache_dir = source["pretrained_model_name_or_path"], source["cache_dir"]
        return name, source.get("subfolder", ""), source.get("revision"), cache_dir

    def load_text_encoders(self, dtype: torch.dtype, device: torch.device) -> None:
        """Tokenizers and text encoders, as the attributes that the pipeline's components are named by.

        Raises:
            OptionError: one of them cannot be loaded, or lacks weights.
        """
        with self._loading():
            for part in self.tokenizers:
                tokenizer = CLIPTokenizer.from_pretrained(self.name, subfolder=part, **self.where, **NO_CODE)
                setattr(self, part, tokenizer)
            for part, kind in self.text_encoders.items():
                where = {"subfolder": part, "variant": self.variant, **self.where}
                setattr(self, part, load_frozen(kind, self.name, dtype=dtype, **where).to(device))

    def move_text_encoders(self, device: torch.device) -> None:
        """Move the text encoders: to the CPU while captions are read from the cache, and back to validate."""
        for part in self.text_encoders:
            getattr(self, part).to(device)

    def load_vae(self, dtype: torch.dtype, device: torch.device) -> None:
        """The autoencoder.

        Raises:
            OptionError: it cannot be loaded, or lacks weights.
        """
        source = self._vae_source()
        name = source.pop("pretrained_model_name_or_path")
        variant = self.variant if self.vae_name is None else None
        with self._loading_vae():
            vae = load_frozen(AutoencoderKL, name, variant=variant, torch_dtype=self.vae_dtype(dtype, device), **source)
        self.vae = vae.to(device)

    def vae_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """The precision the autoencoder is run in where the run asks for `dtype`."""
        return dtype

    def load_unet(self, dtype: torch.dtype, device: torch.device) -> UNet2DConditionModel:
        """The UNet, frozen; the caller decides whether it trains.

        Raises:
            OptionError: it cannot be loaded, or lacks weights.
        """
        where = {"subfolder": "unet", "variant": self.variant, **self.where}
        with self._loading():
            unet = load_frozen(UNet2DConditionModel, self.name, torch_dtype=dtype, **where)
        return unet.to(device)

    def tokenize(self, tokenizer: CLIPTokenizer, captions: Sequence[str], device: torch.device) -> Tensor:
        """`(B, L)` ids, padded and cut to the tokenizer's length as the stock pipelines do."""
        return tokenizer(
            list(captions),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(device)

    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the text encoders make of B captions, batch first, float32. A function of the captions alone, which
        is why it can be cached."""
        raise NotImplementedError

    def condition(self, embedded: dict[str, Tensor], sizes: dict[str, Tensor]) -> Condition:
        """The UNet's keyword arguments for embedded captions and each image's original size and crop.

        Args:
            embedded: of `embed`.
            sizes: `original_size`, `crop_top_left` and `target_size`, each `(B, 2)`, (y, x) in pixels.
        """
        raise NotImplementedError

    def components(self, unet: UNet2DConditionModel, scheduler: SchedulerMixin) -> dict[str, Any]:
        """The arguments of the family's pipelines around `unet`. Networks are shared, not copied."""
        raise NotImplementedError

    def pipeline(self, unet: UNet2DConditionModel, scheduler: SchedulerMixin) -> DiffusionPipeline:
        """The few-step pipeline around `unet`, for a student."""
        return self.pipeline_class(**self.components(unet, scheduler))

    def stock_pipeline(self, unet: UNet2DConditionModel, scheduler: SchedulerMixin) -> DiffusionPipeline:
        """The stock pipeline around `unet`, for a teacher."""
        return getattr(diffusers, self.stock_class)(**self.components(unet, scheduler))

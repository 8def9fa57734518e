"""Base class of the model families: loads the components of a text-to-image repo in diffusers' layout."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedModel

from discriminator.pretrained import NO_CODE, load_frozen
from distillation.student import Condition
from training.models.sources import loading


class Family:
    """A text-to-image repo in diffusers' layout. Configs are read at once, weights are loaded by separate methods.

    The components are loaded separately because a run does not always need all of them on the device; with cached
    captions, for example, the text encoders are moved to the CPU. All loaded networks are frozen and in eval mode.

    Attributes:
        scheduler: scheduler of the repo; only its betas and prediction type are used.
        vae: autoencoder, after `load_vae`.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    stock_class: ClassVar[str]  # pipeline class in model_index.json
    script: ClassVar[str]  # training script for students of this family
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
            variant: variant of the weight files, such as fp16.
            cache_dir: folder for downloads.
            vae_name: Hub id or folder of an autoencoder that replaces the repo's own.
            vae_revision: branch, tag or commit of `vae_name`.
            flag: flag that `name` was given by, for error messages.

        Raises:
            OptionError: a config cannot be read.
        """
        self.source = (name, revision, variant, cache_dir, vae_name, vae_revision, flag)
        self.name, self.vae_name, self.vae_revision, self.flag = name, vae_name, vae_revision, flag
        self.where = {"revision": revision, "cache_dir": cache_dir}
        self.variant = variant
        with self._loading():
            self.index = DiffusionPipeline.load_config(name, **self.where)
            self.scheduler: SchedulerMixin = DDPMScheduler.from_pretrained(name, subfolder="scheduler", **self.where)
        with self._loading_vae():
            self.vae_config = AutoencoderKL.load_config(**self._vae_source())

    def unloaded(self) -> "Family":
        """A new object for the same repo, without weights."""
        return type(self)(*self.source)

    @property
    def scaling_factor(self) -> float:
        """Scaling factor of the latents, known before weights are loaded. If it differs, the latent spaces differ."""
        return self.vae_config.get("scaling_factor", 0.18215)

    def _loading(self) -> AbstractContextManager:
        return loading(self.flag, self.name, f"a complete {self.stock_class} in diffusers' layout")

    def _loading_vae(self) -> AbstractContextManager:
        if self.vae_name is None:
            return self._loading()
        return loading("pretrained_vae_model_name_or_path", self.vae_name, "an AutoencoderKL")

    def _vae_source(self) -> dict:
        """Arguments to load the autoencoder, from a subfolder of the repo or from a separate repo."""
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
        """Load tokenizers and text encoders as attributes that are named like the pipeline's components.

        Raises:
            OptionError: one of them cannot be loaded or lacks weights.
        """
        with self._loading():
            for part in self.tokenizers:
                tokenizer = CLIPTokenizer.from_pretrained(self.name, subfolder=part, **self.where, **NO_CODE)
                setattr(self, part, tokenizer)
            for part, kind in self.text_encoders.items():
                where = {"subfolder": part, "variant": self.variant, **self.where}
                setattr(self, part, load_frozen(kind, self.name, dtype=dtype, **where).to(device))

    def move_text_encoders(self, device: torch.device) -> None:
        """Move the text encoders. They are on the CPU while embeddings come from the cache, except for validation."""
        for part in self.text_encoders:
            getattr(self, part).to(device)

    def load_vae(self, dtype: torch.dtype, device: torch.device) -> None:
        """Load the autoencoder.

        Raises:
            OptionError: it cannot be loaded or lacks weights.
        """
        source = self._vae_source()
        name = source.pop("pretrained_model_name_or_path")
        variant = self.variant if self.vae_name is None else None
        with self._loading_vae():
            vae = load_frozen(AutoencoderKL, name, variant=variant, torch_dtype=self.vae_dtype(dtype, device), **source)
        self.vae = vae.to(device)

    def vae_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """The dtype that the autoencoder runs in if the run uses `dtype`."""
        return dtype

    def load_unet(self, dtype: torch.dtype, device: torch.device) -> UNet2DConditionModel:
        """Load the UNet, frozen.

        Raises:
            OptionError: it cannot be loaded or lacks weights.
        """
        where = {"subfolder": "unet", "variant": self.variant, **self.where}
        with self._loading():
            unet = load_frozen(UNet2DConditionModel, self.name, torch_dtype=dtype, **where)
        return unet.to(device)

    def tokenize(self, tokenizer: CLIPTokenizer, captions: Sequence[str], device: torch.device) -> Tensor:
        """Token ids `(B, L)`, padded and truncated to the tokenizer's length as in the stock pipelines."""
        return tokenizer(
            list(captions),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(device)

    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Embeddings of B captions in float32, batch first. They only depend on the captions, so they can be cached."""
        raise NotImplementedError

    def pooled(self, captions: Sequence[str]) -> Tensor:
        """One vector for each of B captions, `(B, pooled_dim)` float32: what the latent discriminator is told."""
        raise NotImplementedError

    @property
    def pooled_dim(self) -> int:
        """Entries of a pooled caption; after `load_text_encoders`."""
        raise NotImplementedError

    def condition(self, embedded: dict[str, Tensor], sizes: dict[str, Tensor]) -> Condition:
        """Keyword arguments of the UNet for embedded captions and the original size and crop of each image.

        Args:
            embedded: result of `embed`.
            sizes: `original_size`, `crop_top_left` and `target_size`, each `(B, 2)`, (y, x) in pixels.
        """
        raise NotImplementedError

    def components(self, unet: UNet2DConditionModel, scheduler: SchedulerMixin) -> dict[str, Any]:
        """Arguments of the family's pipelines with `unet`. Networks are shared, not copied."""
        raise NotImplementedError

    def pipeline(self, unet: UNet2DConditionModel, scheduler: SchedulerMixin) -> DiffusionPipeline:
        """Make the few-step pipeline with `unet`, for a student."""
        return self.pipeline_class(**self.components(unet, scheduler))

    def stock_pipeline(self, unet: UNet2DConditionModel, scheduler: SchedulerMixin) -> DiffusionPipeline:
        """Make the stock pipeline with `unet`, for a teacher."""
        return getattr(diffusers, self.stock_class)(**self.components(unet, scheduler))

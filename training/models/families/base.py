"""What the repositories of all families have in common: where their parts are and how they are loaded."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, cast

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    ModelMixin,
    SchedulerMixin,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from discriminator.pretrained import NO_CODE, load_frozen
from distillation.student import Condition
from pipelines import ADDPipeline, ADDSD3Pipeline, ADDXLPipeline
from training.models.lora import DEFAULT_TARGET_MODULES
from training.models.sources import load_config, loading
from training.options.derived import Scheduler
from training.options.options import Options


class Family:
    """A text-to-image repo in diffusers' layout. Configs are read at once, weights are loaded by separate methods.

    The components are loaded separately because a run does not always need all of them on the device; with cached
    captions, for example, the text encoders are moved to the CPU. All loaded networks are frozen and in eval mode.

    "UNet" stands for the network that denoises; in some families it is a transformer.

    Attributes:
        scheduler: for its noise schedule and prediction type only.
        vae: after `load_vae`.
    """

    pipeline_class: ClassVar[type[ADDPipeline | ADDXLPipeline | ADDSD3Pipeline]]
    stock_class: ClassVar[str]  # of model_index.json
    script: ClassVar[str]  # that trains students of this family
    text_encoders: dict[str, type[PreTrainedModel]]  # subfolder: class
    tokenizers: dict[str, type[PreTrainedTokenizerBase]]
    network: ClassVar[str] = "unet"  # subfolder of the network that denoises, and its name in the pipelines
    network_class: ClassVar[type[ModelMixin]] = UNet2DConditionModel
    scheduler_class: ClassVar[type[SchedulerMixin]] = DDPMScheduler
    lora_target_modules: ClassVar[tuple[str, ...]] = DEFAULT_TARGET_MODULES
    has_single_file: ClassVar[bool] = True  # whether `training.single_file` knows the names of the original checkpoint

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
        self.where: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir}
        self.variant = variant
        with self._loading():
            self.index = load_config(DiffusionPipeline, name, **self.where)
            scheduler = self.scheduler_class.from_pretrained(name, subfolder="scheduler", **self.where)
            self.scheduler = cast(Scheduler, scheduler)
        with self._loading_vae():
            self.vae_config = load_config(AutoencoderKL, **self._vae_source())

    def unloaded(self) -> "Family":
        """A new object for the same repo, without weights."""
        return type(self)(*self.source)

    @property
    def latent_channels(self) -> int:
        """Of the autoencoder. Known before any weight is loaded."""
        return self.vae_config.get("latent_channels", 4)

    @property
    def factor(self) -> int:
        """Pixels a latent."""
        return 2 ** (len(self.vae_config["block_out_channels"]) - 1)

    @property
    def embedding_settings(self) -> dict[str, Any]:
        """What `embed` depends on beside the text encoders, for the fingerprint of a cache."""
        return {}

    def check(self, options: Options) -> None:
        """Raises: OptionError: options with which this family cannot be trained. Needs no weights."""

    def sampling_scheduler(self) -> SchedulerMixin:
        """A stock scheduler with which a teacher of this family draws in some 25 steps."""
        return DPMSolverMultistepScheduler.from_config(self.scheduler.config)

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
            for part, kind in self.tokenizers.items():
                tokenizer = kind.from_pretrained(self.name, subfolder=part, **self.where, **NO_CODE)
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

    def load_unet(self, dtype: torch.dtype, device: torch.device) -> Any:
        """The network that denoises, frozen; the caller decides whether it trains.

        Raises:
            OptionError: it cannot be loaded or lacks weights.
        """
        where = {"subfolder": self.network, "variant": self.variant, **self.where}
        with self._loading():
            unet = load_frozen(self.network_class, self.name, torch_dtype=dtype, **where)
        return unet.to(device)

    def tokenize(
        self,
        tokenizer: PreTrainedTokenizerBase,
        captions: Sequence[str],
        device: torch.device,
        length: int | None = None,
    ) -> Tensor:
        """`(B, L)` ids, padded and cut to `length`, or to the tokenizer's own, as the stock pipelines do."""
        return tokenizer(
            list(captions),
            padding="max_length",
            max_length=length or tokenizer.model_max_length,
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
        """The network's keyword arguments for embedded captions and each image's original size and crop.

        Args:
            embedded: result of `embed`.
            sizes: `original_size`, `crop_top_left` and `target_size`, each `(B, 2)`, (y, x) in pixels.
        """
        raise NotImplementedError

    def components(self, unet: ModelMixin, scheduler: SchedulerMixin) -> dict[str, Any]:
        """Arguments of the family's pipelines with `unet`. Networks are shared, not copied."""
        raise NotImplementedError

    def pipeline(self, unet: ModelMixin, scheduler: SchedulerMixin) -> DiffusionPipeline:
        """Make the few-step pipeline with `unet`, for a student."""
        return self.pipeline_class(**self.components(unet, scheduler))

    def stock_pipeline(self, unet: ModelMixin, scheduler: SchedulerMixin) -> DiffusionPipeline:
        """Make the stock pipeline with `unet`, for a teacher."""
        return getattr(diffusers, self.stock_class)(**self.components(unet, scheduler))

"""Stable Diffusion 3 and 3.5: flow matching by a transformer, three text encoders, latents of 16 channels."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ModelMixin, SchedulerMixin, SD3Transformer2DModel
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from distillation.student import Condition
from pipelines import ADDSD3Pipeline
from training.errors import OptionError
from training.models.families.base import Family
from training.options.models import SD3Options
from training.options.options import Options
from training.sharding.plan import is_asked_for

CLIPS = {"text_encoder": CLIPTextModelWithProjection, "text_encoder_2": CLIPTextModelWithProjection}
CLIP_TOKENIZERS = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer}
T5, T5_TOKENIZER = "text_encoder_3", "tokenizer_3"


class StableDiffusion3(Family):
    """A Stable Diffusion 3 or 3.5 repo (2403.03206).

    Its third text encoder, T5, is optional: without it the transformer is given zeros in its place, as stock pipelines
    do. T5-XXL has 4.8 of the text encoders' 5.6 billion parameters.
    """

    pipeline_class = ADDSD3Pipeline
    stock_class = "StableDiffusion3Pipeline"
    script = "train_add_sd3.py"
    network = "transformer"
    network_class = SD3Transformer2DModel
    scheduler_class = FlowMatchEulerDiscreteScheduler
    has_single_file = False
    # Every linear map of the transformer's blocks, of the image's and of the text's stream, and those that modulate the
    # blocks by the timestep, as `time_emb_proj` does in a UNet.
    lora_target_modules = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff.net.0.proj",
        "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "norm1.linear", "norm1_context.linear",
    )  # fmt: skip

    def __init__(self, *source: Any, settings: SD3Options = SD3Options()):  # noqa: B008 (immutable)
        """Read the configs of the scheduler, the autoencoder and the transformer.

        Args:
            source: of `Family`.
            settings: the flags of Stable Diffusion 3 alone.

        Raises:
            OptionError: a config cannot be read.
        """
        super().__init__(*source)
        self.settings = settings
        with self._loading():
            self.network_config: dict[str, Any] = self.network_class.load_config(
                self.name, subfolder=self.network, **self.where
            )
        has_t5 = self.index.get(T5, (None, None))[1] is not None and not settings.no_text_encoder_3
        self.text_encoders = CLIPS | ({T5: T5EncoderModel} if has_t5 else {})
        self.tokenizers = CLIP_TOKENIZERS | ({T5_TOKENIZER: T5TokenizerFast} if has_t5 else {})

    def unloaded(self) -> "StableDiffusion3":
        """The same repo without its weights."""
        return StableDiffusion3(*self.source, settings=self.settings)

    @property
    def embedding_settings(self) -> dict[str, Any]:
        """Only T5 reads more or fewer tokens; what stands in for it is not cached."""
        return {"max_sequence_length": self.settings.max_sequence_length} if T5 in self.text_encoders else {}

    def check(self, options: Options) -> None:
        """Raises: OptionError: images whose latents cannot be cut into the transformer's patches, or sharding."""
        if is_asked_for():
            raise OptionError("--use_fsdp got True: only UNets can be sharded, not this transformer; leave it out")
        patch, most = self.network_config.get("patch_size", 2), self.network_config.get("pos_embed_max_size", 96)
        multiple, resolution = patch * self.factor, options.data.resolution
        if resolution % multiple or resolution > multiple * most:
            raise OptionError(
                f"--resolution got {resolution}: the transformer of {self.name} takes multiples of {multiple} up to "
                f"{multiple * most}"
            )

    def sampling_scheduler(self) -> SchedulerMixin:
        """The repo's own."""
        return FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the encoders make of B captions, float32.

        Returns:
            `clip (B, 77, D1 + D2)`, the penultimate layers of both CLIPs side by side; `pooled (B, P1 + P2)`, their
            projections; and with T5 `t5 (B, L, D)`, its last layer.
        """
        length = self.tokenizer.model_max_length  # of the first, for both, as the stock pipeline has it
        outputs = [
            encoder(self.tokenize(tokenizer, captions, encoder.device, length), output_hidden_states=True)
            for tokenizer, encoder in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2))
        ]
        embedded = {
            "clip": torch.cat([output.hidden_states[-2].float() for output in outputs], dim=-1),
            "pooled": torch.cat([output.text_embeds.float() for output in outputs], dim=-1),
        }
        if T5 in self.text_encoders:
            encoder = self.text_encoder_3
            ids = self.tokenize(self.tokenizer_3, captions, encoder.device, self.settings.max_sequence_length)
            embedded["t5"] = encoder(ids)[0].float()
        return embedded

    def condition(self, embedded: dict[str, Tensor], sizes: dict[str, Tensor]) -> Condition:
        """`encoder_hidden_states (B, 77 + L, D)`: the CLIPs' tokens, padded with zeros to T5's width, and then T5's, or
        zeros without T5; and `pooled_projections (B, P1 + P2)`. Stable Diffusion 3 knows nothing of `sizes`."""
        clip, width = embedded["clip"], self.network_config["joint_attention_dim"]
        t5 = embedded.get("t5")
        if t5 is None:
            t5 = clip.new_zeros(len(clip), self.settings.max_sequence_length, width)
        clip = torch.nn.functional.pad(clip, (0, width - clip.shape[-1]))
        return {"encoder_hidden_states": torch.cat([clip, t5], dim=1), "pooled_projections": embedded["pooled"]}

    def components(self, unet: ModelMixin, scheduler: SchedulerMixin) -> dict[str, Any]:
        """See `Family`; T5 and its tokenizer are None where they are left out."""
        parts = {part: getattr(self, part, None) for part in (*CLIPS, *CLIP_TOKENIZERS, T5, T5_TOKENIZER)}
        return {"vae": self.vae, **parts, self.network: unet, "scheduler": scheduler}

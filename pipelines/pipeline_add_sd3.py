"""Sampling students of Adversarial Diffusion Distillation (ADD) in Stable Diffusion 3's layout, in 1 to N steps.

Published, together with the modules that it imports from this folder, as the single file `pipeline.py` in the root of
every student's repository, next to a `model_index.json` that names the stock class. So a repository can be loaded with
plain diffusers, with this class, or as remote code:
`DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)`.
"""

# pyright: reportPrivateImportUsage=false

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline, StableDiffusion3Pipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.pipelines.stable_diffusion_3.pipeline_output import StableDiffusion3PipelineOutput

from .few_step import FewStepMixin
from .optimize import OptimizeMixin
from .saving import whole_source


class ADDSD3Pipeline(FewStepMixin, OptimizeMixin, StableDiffusion3Pipeline):
    """Text-to-image, image-to-image and inpainting by an ADD student of Stable Diffusion 3; see `FewStepMixin`.

    A training index k of `timesteps` stands for the noise level (k + 1) / T, which the scheduler shifts. Between steps
    the published `FlowMapEulerDiscreteScheduler` takes Euler steps along the predicted velocity, and it draws no noise.
    The velocity is not amplified, so that bfloat16 needs no exceptions: in every precision the image equals the stock
    pipeline's bit for bit, if that is given `sigmas=pipe.sampling_sigmas(n)`, or at 1, 2 and 4 steps of the default
    student the number of steps alone.

    With `image`, the output has `height` and `width`, by default the transformer's, as in the stock pipelines. Those
    round the number of steps that `strength` leaves up, so that 2 steps with strength 0.8 would start from pure noise,
    with nothing left of the image. Here it is rounded down, as for the other families.
    """

    _stock_class = StableDiffusion3Pipeline
    _image_class = StableDiffusion3Img2ImgPipeline
    _inpaint_class = StableDiffusion3InpaintPipeline
    _addition_embed_type = None
    _size_of_image = False
    # A student may be published without T5. The stock class has to be told: `text_encoder_3=None, tokenizer_3=None`.
    _optional_components = [*StableDiffusion3Pipeline._optional_components, "text_encoder_3", "tokenizer_3"]  # noqa: RUF012
    # Read at import: as remote code this file is in a cache, where the next repository's `pipeline.py` overwrites it.
    _source = whole_source(__file__)

    def sampling_sigmas(self, num_inference_steps: int) -> list[float]:
        """Return the noise levels in (0, 1] that a call with `num_inference_steps` visits, descending.

        They are those before the shift, which the stock pipelines take as `sigmas`.
        """
        return self._sigmas(self.sampling_timesteps(num_inference_steps))

    def _sigmas(self, steps: list[int]) -> list[float]:
        return [(step + 1) / self.scheduler.config.num_train_timesteps for step in steps]

    def _stock_schedule(self, steps: list[int]) -> dict[str, Any]:
        """Return the arguments that make a stock call visit `steps`."""
        if "sigmas" not in inspect.signature(self.scheduler.set_timesteps).parameters:
            raise ValueError(
                f"scheduler={type(self.scheduler).__name__} cannot visit the student's timesteps {steps}. Use one that "
                "takes sigmas: pipe.scheduler = FlowMapEulerDiscreteScheduler.from_config(pipe.scheduler.config)."
            )
        return {"sigmas": self._sigmas(steps)}

    def _stock_strength(self, strength: float, num_inference_steps: int) -> float:
        """Return the strength of which a stock call leaves int(strength * num_inference_steps) steps."""
        left = int(strength * num_inference_steps)
        # Slightly less than the share, which may have been rounded up, and one step would be left too many.
        return 1.0 if left == num_inference_steps else left / num_inference_steps * (1 - 1e-9)

    def _sample(self, arguments: dict[str, Any]) -> Any:
        """Make the stock call that `image` and `mask_image` select."""
        # As the stock pipelines for images have it, which tell latents from pixels by their channels.
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, vae_latent_channels=self.vae.config.latent_channels
        )
        return super()._sample(arguments)

    @torch.no_grad()
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        prompt_3: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[int] | None = None,
        guidance_scale: float = 0.0,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        negative_prompt_3: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        joint_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 256,
        *,
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
        padding_mask_crop: int | None = None,
        strength: float | None = None,
    ) -> StableDiffusion3PipelineOutput | tuple:
        """Sample images for `prompt`: from noise, from `image`, or only where `mask_image` is white.

        Arguments mean what they mean in `StableDiffusion3Pipeline`, `StableDiffusion3Img2ImgPipeline` and
        `StableDiffusion3InpaintPipeline`; those that differ for students are described in `FewStepMixin` and above.
        Skip-layer guidance has no use here.

        Returns:
            `StableDiffusion3PipelineOutput`, or the tuple (images,) with `return_dict=False`.

        Raises:
            ValueError: for steps or timesteps that the student was not trained for, a strength that is out of range or
                leaves no step, an argument that this kind of call does not take, or a scheduler that cannot visit the
                timesteps.
        """
        return self._sample(locals())

"""Sampling students of Adversarial Diffusion Distillation (ADD) in Stable Diffusion's layout, in 1 to N steps.

Published, with the text of `few_step.py` and `optimize.py` in it, as `pipeline.py` at the root of every student's
repository, beside a `model_index.json` that names the stock class. A repository therefore loads in plain diffusers,
here, or as `DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

from pipelines.few_step import FewStepMixin, whole_source
from pipelines.optimize import OptimizeMixin


class ADDPipeline(FewStepMixin, OptimizeMixin, StableDiffusionPipeline):
    """Text-to-image, image-to-image and inpainting by an ADD student of Stable Diffusion; see `FewStepMixin`."""

    _stock_class = StableDiffusionPipeline
    _image_class = StableDiffusionImg2ImgPipeline
    _inpaint_class = StableDiffusionInpaintPipeline
    _addition_embed_type = None
    # Read at import, and kept by the class: as remote code this file lies in a cache which the next repository's
    # `pipeline.py` overwrites, module and all.
    _source = whole_source(__file__)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 1,
        timesteps: list[int] | None = None,
        guidance_scale: float = 0.0,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
        padding_mask_crop: int | None = None,
        strength: float | None = None,
    ) -> StableDiffusionPipelineOutput | tuple:
        """Sample images for `prompt`; given `image`, images like it; given `mask_image` too, in the mask alone.

        Arguments mean what they mean in `StableDiffusionPipeline`, `StableDiffusionImg2ImgPipeline` and
        `StableDiffusionInpaintPipeline`; what is particular to students stands in `FewStepMixin`.

        Returns:
            `StableDiffusionPipelineOutput`, or the tuple (images, nsfw flags) with `return_dict=False`.

        Raises:
            ValueError: for steps or timesteps the student does not know, a strength that leaves no step, an argument
                that the kind of call does not take, and a scheduler that cannot take the timesteps.
        """
        return self._sample(locals())

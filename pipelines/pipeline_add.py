"""Pipeline for students of Adversarial Diffusion Distillation (ADD) with the architecture of Stable Diffusion.

It is published, together with the modules that it imports from this folder, as the single file `pipeline.py` in every
student's repository, next to a `model_index.json` that names the stock class. A repository can therefore be loaded with
plain diffusers, with this class, or as remote code:
`DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)`.
"""

# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

from .few_step import FewStepMixin
from .optimize import OptimizeMixin
from .saving import whole_source


class ADDPipeline(FewStepMixin, OptimizeMixin, StableDiffusionPipeline):
    """Text-to-image, image-to-image and inpainting by an ADD student of Stable Diffusion; see `FewStepMixin`."""

    _stock_class = StableDiffusionPipeline
    _image_class = StableDiffusionImg2ImgPipeline
    _inpaint_class = StableDiffusionInpaintPipeline
    _addition_embed_type = None
    # Read at import, because remote code is in a cache, where the `pipeline.py` of another repository may overwrite it.
    _source = whole_source(__file__)

    @torch.no_grad()
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
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
        """Sample images for `prompt`: from noise, from `image`, or only where `mask_image` is white.

        See `StableDiffusionPipeline`, `StableDiffusionImg2ImgPipeline` and `StableDiffusionInpaintPipeline` for the
        arguments; those that differ for students are described in `FewStepMixin`.

        Returns:
            `StableDiffusionPipelineOutput`, or the tuple (images, nsfw flags) with `return_dict=False`.

        Raises:
            ValueError: the student was not trained for the steps or timesteps, the strength is out of range or leaves
                no step, the task does not take an argument, or the scheduler cannot visit the timesteps.
        """
        return self._sample(locals())

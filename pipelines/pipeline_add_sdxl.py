"""Pipeline for students of Adversarial Diffusion Distillation (ADD) with the architecture of SDXL.

It is published, together with the modules that it imports from this folder, as the single file `pipeline.py` in every
student's repository, next to a `model_index.json` that names the stock class. A repository can therefore be loaded with
plain diffusers, with this class, or as remote code:
`DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)`.
"""

# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput
from diffusers.pipelines.stable_diffusion_xl.pipeline_output import StableDiffusionXLPipelineOutput

from .few_step import FewStepMixin
from .optimize import OptimizeMixin
from .saving import whole_source


class ADDXLPipeline(FewStepMixin, OptimizeMixin, StableDiffusionXLPipeline):
    """Text-to-image, image-to-image and inpainting by an ADD student of SDXL; see `FewStepMixin`."""

    _stock_class = StableDiffusionXLPipeline
    _image_class = StableDiffusionXLImg2ImgPipeline
    _inpaint_class = StableDiffusionXLInpaintPipeline
    _addition_embed_type = "text_time"
    # Read at import, because remote code is in a cache, where the `pipeline.py` of another repository may overwrite it.
    _source = whole_source(__file__)

    @torch.no_grad()
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[int] | None = None,
        guidance_scale: float = 0.0,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crops_coords_top_left: tuple[int, int] = (0, 0),
        negative_target_size: tuple[int, int] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
        padding_mask_crop: int | None = None,
        strength: float | None = None,
    ) -> StableDiffusionXLPipelineOutput | tuple:
        """Sample images for `prompt`: from noise, from `image`, or only where `mask_image` is white.

        See `StableDiffusionXLPipeline`, `StableDiffusionXLImg2ImgPipeline` and `StableDiffusionXLInpaintPipeline` for
        the arguments; those that differ for students are described in `FewStepMixin`. The arguments for the
        base-and-refiner ensemble (`denoising_start`, `denoising_end`, aesthetic scores) are not supported.

        Returns:
            `StableDiffusionXLPipelineOutput`, or the tuple (images,) with `return_dict=False`.

        Raises:
            ValueError: the student was not trained for the steps or timesteps, the strength is out of range or leaves
                no step, the task does not take an argument, or the scheduler cannot visit the timesteps.
        """
        return self._sample(locals())

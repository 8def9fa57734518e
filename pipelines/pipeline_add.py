"""Sampling students of Adversarial Diffusion Distillation (ADD) in Stable Diffusion's layout, in 1 to N steps.

This file runs alone: it is published as `pipeline.py` at the root of every student's repository, beside a
`model_index.json` that names the stock class. A repository therefore loads in plain diffusers, here, or as
`DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)`.
"""

import inspect
import json
import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

DEFAULT_STUDENT_TIMESTEPS = (249, 499, 749, 999)

# What diffusers and transformers note in configs about where a model was loaded from: a local path of no one's concern,
# and the reason why saving a loaded model would not give the same files.
_LOADING_TRACES = ("_name_or_path", "is_local", "local_files_only")


def spread_timesteps(student_timesteps: Sequence[int], num_inference_steps: int) -> list[int]:
    """Choose `num_inference_steps` of the student's timesteps: the largest first, then evenly by rank, descending.

    This is "trailing" spacing over the student's set in place of 0..T-1. For the default set of four, 1, 2 and 4
    steps are those of a stock scheduler with trailing spacing: [999], [999, 499], [999, 749, 499, 249]. Three are
    [999, 749, 249], each the nearest the student knows to stock's [999, 666, 332].

    Raises:
        ValueError: if there are fewer timesteps than steps, or no step at all.
    """
    ascending, n = sorted(student_timesteps), num_inference_steps
    if not 1 <= n <= len(ascending):
        raise ValueError(
            f"num_inference_steps={n} is out of range: this student knows the {len(ascending)} timesteps {ascending}. "
            f"Use 1 to {len(ascending)}."
        )
    last = len(ascending) - 1
    return [ascending[last - (2 * i * len(ascending) + n) // (2 * n)] for i in range(n)]  # i N/n, rounded half up


def check_strength(strength: float, num_inference_steps: int) -> None:
    """Refuse a strength that would leave image-to-image without a step.

    Raises:
        ValueError: unless 0 < strength <= 1 and strength * num_inference_steps >= 1.
    """
    if not (0 < strength <= 1 and int(strength * num_inference_steps) >= 1):
        least = math.ceil(100 / num_inference_steps) / 100  # rounded up, so that the product is not below 1
        raise ValueError(
            f"strength={strength} with num_inference_steps={num_inference_steps} leaves no step: strength lies in "
            f"(0, 1] and strength * num_inference_steps must be at least 1. Use a strength of at least {least}, or "
            "more steps."
        )


class ADDPipeline(StableDiffusionPipeline):
    """Text-to-image and image-to-image by an ADD student: `image = pipe("a red fox").images[0]`, one step.

    Both are the stock pipelines' own calls on this pipeline's components, at the student's timesteps. So LoRA,
    textual inversion, IP-Adapter, offloading and callbacks work as ever, and the image is the stock pipeline's, bit
    for bit, for the same arguments wherever its scheduler takes the same timesteps: always at 1, 2 and 4 steps of
    the default student, otherwise when it is passed `timesteps=` of `pipe.sampling_timesteps(n)`.

    The scheduler is a stock one and decides what happens between steps. The published `DDPMScheduler` draws from the
    posterior q(x_t' | x_t, x0), which is what an Euler-ancestral sampler with eta = 1 does, started from unit noise
    as in training. Full re-noising of x0, as in multistep consistency sampling, is the stock
    `pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=1000)`.
    """

    _stock_class = StableDiffusionPipeline
    # Read at import, and kept by the class: as remote code this file lies in a cache which the next repository's
    # `pipeline.py` overwrites, module and all.
    _source = Path(__file__).read_bytes()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "ADDPipeline":
        """Load a student's repository, or any Stable Diffusion one; arguments as in `DiffusionPipeline`.

        Raises:
            ValueError: if the repository holds another family of models, before its weights are downloaded.
        """
        hub_keys = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision")
        hub_kwargs = {key: kwargs[key] for key in hub_keys if key in kwargs}
        found = cls.load_config(pretrained_model_name_or_path, **hub_kwargs)["_class_name"]
        if found != cls._stock_class.__name__:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {found}, but {cls.__name__} samples a "
                f"{cls._stock_class.__name__}. Load it with diffusers.DiffusionPipeline.from_pretrained."
            )
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @property
    def student_timesteps(self) -> tuple[int, ...]:
        """The training indices in [0, T - 1] that the student knows, ascending.

        They travel in the scheduler's config under a private name: stock loaders pass over it in silence, and
        `from_config` hands it on to whatever scheduler takes its place.
        """
        return tuple(self.scheduler.config.get("_student_timesteps", DEFAULT_STUDENT_TIMESTEPS))

    def sampling_timesteps(self, num_inference_steps: int) -> list[int]:
        """The student's timesteps that so many steps visit, descending; see `spread_timesteps`."""
        return spread_timesteps(self.student_timesteps, num_inference_steps)

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
        strength: float | None = None,
    ) -> StableDiffusionPipelineOutput | tuple:
        """Sample images for `prompt`, or, given `image`, images like it.

        Arguments that are not named here mean what they mean in `StableDiffusionPipeline` and
        `StableDiffusionImg2ImgPipeline`.

        Args:
            num_inference_steps: 1 to N for a student of N timesteps.
            timesteps: the student's timesteps to visit, descending, in place of `num_inference_steps`. From text
                they start at the student's largest, since the start is pure noise.
            guidance_scale: the student was trained without guidance, and 0 to 1 mean none. More than 1 is honoured
                at the price of a second UNet pass a step, and needed for `negative_prompt` to have any effect.
            image: makes this image-to-image: pixels `(B, 3, H, W)` in [0, 1], a PIL image, an array, latents, or a
                list of them. The output has its size.
            strength: in (0, 1], only with `image`, 0.8 if not given: the last int(strength * steps) timesteps are
                sampled. At least one must remain, so one step means strength 1, and 2 steps with strength 0.5
                start from the student's middle timestep.

        Returns:
            `StableDiffusionPipelineOutput`, or the tuple (images, nsfw flags) with `return_dict=False`.

        Raises:
            ValueError: for steps or timesteps the student does not know, a strength that leaves no step, an argument
                of text-to-image beside `image` or the reverse, and a scheduler that cannot take the timesteps.
        """
        steps = self._steps(num_inference_steps, timesteps, from_image=image is not None)
        common = {
            "prompt": prompt,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
            "num_images_per_prompt": num_images_per_prompt,
            "eta": eta,
            "generator": generator,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "ip_adapter_image": ip_adapter_image,
            "ip_adapter_image_embeds": ip_adapter_image_embeds,
            "output_type": output_type,
            "return_dict": return_dict,
            "cross_attention_kwargs": cross_attention_kwargs,
            "clip_skip": clip_skip,
            "callback_on_step_end": callback_on_step_end,
            "callback_on_step_end_tensor_inputs": list(callback_on_step_end_tensor_inputs),
        }
        text_only = {"height": height, "width": width, "latents": latents, "guidance_rescale": guidance_rescale}
        if image is None:
            if strength is not None:
                raise ValueError(f"strength={strength} has no meaning without image. Pass image, or drop strength.")
            return super().__call__(**common, **text_only, **self._stock_schedule(steps))

        given = [name for name in ("height", "width", "latents") if text_only[name] is not None]
        given += ["guidance_rescale"] * bool(guidance_rescale)
        if given:
            raise ValueError(f"{', '.join(given)} cannot go with image, which sets size and start. Drop either.")
        strength = 0.8 if strength is None else strength
        check_strength(strength, len(steps))
        stock = self._seen_as(StableDiffusionImg2ImgPipeline)
        return stock(image=image, strength=strength, **common, **self._stock_schedule(steps))

    def _steps(self, num_inference_steps: int, timesteps: list[int] | None, from_image: bool) -> list[int]:
        """The timesteps to visit, checked against the student's."""
        if timesteps is None:
            return self.sampling_timesteps(num_inference_steps)
        known = self.student_timesteps
        if not timesteps or list(timesteps) != sorted(set(timesteps) & set(known), reverse=True):
            raise ValueError(f"timesteps={timesteps} must be a descending choice of the student's {known}.")
        if timesteps[0] != max(known) and not from_image:
            raise ValueError(f"timesteps={timesteps} must start at {max(known)} without image, at pure noise.")
        return list(timesteps)

    def _stock_schedule(self, steps: list[int]) -> dict[str, Any]:
        """The arguments that make a stock call visit `steps`: the very same call as anyone's wherever that does it."""
        self.scheduler.set_timesteps(len(steps))  # the stock call sets them again
        if self.scheduler.timesteps.tolist() == steps:
            return {"num_inference_steps": len(steps)}
        if "timesteps" in inspect.signature(self.scheduler.set_timesteps).parameters:
            return {"timesteps": steps}
        zero_snr = self.scheduler.config.prediction_type != "epsilon"
        raise ValueError(
            f"scheduler={type(self.scheduler).__name__} cannot visit the student's timesteps {steps}. Use one that "
            "takes timesteps: pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=False, "
            f"timestep_spacing='trailing', rescale_betas_zero_snr={zero_snr})."
        )

    def _seen_as(self, stock_class: type) -> Any:
        """This pipeline as another stock class, with ONE state: what a callback interrupts, what offloading hooks
        and what the properties report is then the same on both, which a second pipeline of our components would
        get wrong."""
        view = stock_class.__new__(stock_class)
        view.__dict__ = self.__dict__
        return view

    def to_json_string(self) -> str:
        """`model_index.json`: the stock class, and no trace of where the pipeline was loaded from."""
        index = json.loads(super().to_json_string()) | {"_class_name": self._stock_class.__name__}
        index.pop("_name_or_path", None)
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    def save_config(self, save_directory, *args, **kwargs) -> None:
        """Complete the published layout: `save_pretrained` and `push_to_hub` end here, before anything is uploaded."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        Path(save_directory, "pipeline.py").write_bytes(self._source)
        for name, kind in product(self.components, ("config.json", "tokenizer_config.json")):
            file = Path(save_directory, name, kind)
            if file.is_file():
                config = json.loads(file.read_text(encoding="utf-8"))
                config = {key: value for key, value in config.items() if key not in _LOADING_TRACES}
                file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        super().save_config(save_directory, *args, **kwargs)

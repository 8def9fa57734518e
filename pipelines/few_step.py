"""Base class of the student pipelines: loading, the three tasks, and the student's timesteps.

A pipeline is published as ONE self-contained file, `pipeline.py`: the family's file, in which each import of another
module of this folder is replaced by that module's text. These files therefore only import the standard library, torch,
diffusers and each other.
"""

# pyright: reportPrivateImportUsage=false

import inspect
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from diffusers.image_processor import VaeImageProcessor

from .call_warnings import warn_about_call
from .precision import Float32LatentsMixin, to_bfloat16
from .saving import SavingMixin
from .timesteps import DEFAULT_STUDENT_TIMESTEPS, check_strength, fewest_steps, spread_timesteps

# Arguments that require another argument.
_NEEDS = {"strength": "image", "mask_image": "image", "padding_mask_crop": "mask_image"}


class FewStepMixin(Float32LatentsMixin, SavingMixin):
    """Turns a stock pipeline into one for ADD students: `image = pipe("a red fox").images[0]` samples in one step.

    Text-to-image, image-to-image and inpainting are the calls of the stock pipelines with this pipeline's components
    and the student's timesteps. LoRA, textual inversion, IP-Adapter, offloading and callbacks therefore work as in
    diffusers. In float32 and float16, the image is bit-equal to that of the stock pipeline for the same arguments, if
    the stock scheduler uses the same timesteps: always for 1, 2 and 4 steps of the default student, otherwise if it is
    passed `timesteps=pipe.sampling_timesteps(n)`.

    In bfloat16, the result of a student that predicts epsilon deliberately differs from that of the stock pipeline, and
    is closer to float32 by a factor of five or more. Such a student multiplies the rounding errors of its output by up
    to 14.6, so the outermost layers of the UNet and the scheduler's step are computed in float32, and `latents` are
    float32. See `keep_output_in_float32`.

    The scheduler is a stock one. The published `DDPMScheduler` draws from the posterior q(x_t' | x_t, x0), like an
    Euler-ancestral sampler with eta = 1, but starts from unit noise, as in training. For full re-noising of x0,
    as in multistep consistency sampling, use
    `pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=1000)`.

    These arguments of a call differ from the stock pipelines':

        num_inference_steps: 1 to N for a student with N timesteps. The default is 1, or with `image` the smallest
            number of which `strength` leaves one step. Three steps of the default student are at 999, 749 and 249,
            whereas a stock scheduler uses 999, 666 and 332, at which the student was not trained.
        timesteps: the student's timesteps to visit, descending, instead of `num_inference_steps`. Without `image` the
            first must be the student's largest, because sampling starts from pure noise.
        guidance_scale: the student was trained without guidance, so the default is 0, and 0 to 1 mean no guidance. More
            than 1 takes effect, doubles the cost of the UNet, and usually oversaturates the image. Negative prompts are
            ignored without it.
        image: selects image-to-image. Pixels `(B, 3, H, W)` in [0, 1], a PIL image, an array, latents, or a list of
            these. The output has the same size.
        mask_image: with `image`, selects inpainting: white is repainted, black is kept. Pixels `(B, 1, H, W)`, a PIL
            image or an array. The output has `height` and `width`, by default the UNet's, as in stock inpainting.
        padding_mask_crop: with `mask_image`, repaint a crop around the mask with a margin of this many pixels.
        strength: with `image`, in (0, 1]: the last int(strength * steps) timesteps are sampled, at least one. One step
            therefore requires strength 1, and 2 steps with strength 0.5 start at the student's middle timestep. The
            default is 0.8, or 1 with `mask_image`.

    A subclass sets the class attributes below.

    Attributes:
        _image_class, _inpaint_class: the other two of the family's stock pipelines, beside `_stock_class`.
        _addition_embed_type: the kind of added conditioning of the family's UNet; None without a UNet.
        _size_of_image: whether image-to-image keeps the size of `image`, as stock pipelines with a UNet do.
        _other_families: classes for repositories of other families, by the stock class in their `model_index.json`.
            Empty in the published file; filled by the package.
    """

    _image_class: ClassVar[type[DiffusionPipeline]]
    _inpaint_class: ClassVar[type[DiffusionPipeline]]
    _addition_embed_type: ClassVar[str | None]
    _size_of_image: ClassVar[bool] = True
    _other_families: ClassVar[dict[str, type[DiffusionPipeline]]] = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a student's repository, or any other of the family; see `DiffusionPipeline` for the arguments.

        In bfloat16, the UNet is loaded in float32 first, so that the layers kept in float32 are not rounded.

        Raises:
            ValueError: the repository contains a model of another family; raised before its weights are downloaded.
        """
        hub_keys = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision")
        hub_kwargs = {key: kwargs[key] for key in hub_keys if key in kwargs}
        index: Any = cls.load_config(pretrained_model_name_or_path, **hub_kwargs)
        found = index["_class_name"]
        if found in cls._other_families:
            return cls._other_families[found].from_pretrained(pretrained_model_name_or_path, **kwargs)
        if found != cls._stock_class.__name__:
            raise ValueError(
                f"{pretrained_model_name_or_path} contains a {found}, but {cls.__name__} samples a "
                f"{cls._stock_class.__name__}. Load it with diffusers.DiffusionPipeline.from_pretrained."
            )
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        if dtype != torch.bfloat16 or "unet" not in index or "unet" in kwargs or "quantization_config" in kwargs:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "torch_dtype")}
        dtypes = {"default": dtype, "unet": torch.float32}
        pipe = super().from_pretrained(pretrained_model_name_or_path, dtype=dtypes, **kwargs)
        if pipe.scheduler.config.get("prediction_type") == "epsilon":
            to_bfloat16(pipe.unet)
        else:
            torch.nn.Module.to(pipe.unet, dtype)  # the `to` of diffusers warns about changes of dtype
        pipe._keep_precision()
        return pipe

    def register_modules(self, **modules) -> None:
        """Register the components; called by loading, `from_pipe` and `from_single_file`.

        Raises:
            ValueError: the UNet belongs to another family. Stock loaders would accept it and fail during a call.
        """
        found = getattr(getattr(modules.get("unet"), "config", None), "addition_embed_type", self._addition_embed_type)
        if found != self._addition_embed_type:
            raise ValueError(
                f"{type(self).__name__} samples a {self._stock_class.__name__}, whose UNet has addition_embed_type="
                f"{self._addition_embed_type!r}, but this UNet has {found!r}: it belongs to another family. Use that "
                "family's pipeline: ADDPipeline for Stable Diffusion 1 and 2, ADDXLPipeline for SDXL."
            )
        super().register_modules(**modules)

    @property
    def student_timesteps(self) -> tuple[int, ...]:
        """The training indices in [0, T - 1] that the student was trained at, ascending.

        They are stored in the scheduler's config under a private name, which stock loaders ignore without a warning and
        which `from_config` copies to other schedulers.
        """
        return tuple(self.scheduler.config.get("_student_timesteps", DEFAULT_STUDENT_TIMESTEPS))

    def sampling_timesteps(self, num_inference_steps: int) -> list[int]:
        """Return the timesteps that a call with `num_inference_steps` visits, descending; see `spread_timesteps`."""
        return spread_timesteps(self.student_timesteps, num_inference_steps)

    def _sample(self, arguments: dict[str, Any]) -> Any:
        """Make the stock call that `image` and `mask_image` select. `arguments` are all arguments of `__call__`."""
        arguments = {name: value for name, value in arguments.items() if name != "self"}
        image, mask = arguments["image"] is not None, arguments["mask_image"] is not None
        stock_class = self._inpaint_class if image and mask else self._image_class if image else self._stock_class
        strength = arguments["strength"]
        if image and strength is None:
            strength = arguments["strength"] = 1.0 if mask else 0.8
        steps, timesteps = arguments.pop("num_inference_steps"), arguments.pop("timesteps")
        steps = self._steps(steps, timesteps, strength if image else None)
        warn_about_call(self.scheduler, arguments)
        arguments = self._arguments_of(stock_class, arguments)
        arguments["callback_on_step_end_tensor_inputs"] = list(arguments["callback_on_step_end_tensor_inputs"])
        if image:
            check_strength(arguments["strength"], len(steps))
            arguments["strength"] = self._stock_strength(arguments["strength"], len(steps))
        if mask:  # stock inpainting pipelines make it when they are constructed
            self.mask_processor = VaeImageProcessor(
                vae_scale_factor=self.vae_scale_factor,
                vae_latent_channels=self.vae.config.latent_channels,
                do_normalize=False,
                do_binarize=True,
                do_convert_grayscale=True,
            )
        self._keep_precision()  # components may have been replaced or cast since the last call
        stock = self._seen_as(stock_class) if image else self
        return stock_class.__call__(stock, **arguments, **self._stock_schedule(steps))

    def _arguments_of(self, stock_class: type, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the stock call; all others must have their default values."""
        taken = set(inspect.signature(stock_class.__call__).parameters)
        if stock_class is self._image_class:  # SDXL's and SD 3's take latents, and then ignore the image
            taken -= {"height", "width", "latents"} if self._size_of_image else {"latents"}
        ours = inspect.signature(type(self).__call__).parameters
        given = [name for name in arguments if name not in taken and not _is(arguments[name], ours[name].default)]
        for name in given:
            if name in _NEEDS:
                value = f"={arguments[name]}" if isinstance(arguments[name], int | float) else ""
                needed = _NEEDS[name]
                raise ValueError(f"{name}{value} has no effect without {needed}. Pass {needed}, or drop {name}.")
        if given:
            kind = "mask_image" if stock_class is self._inpaint_class else "image"
            raise ValueError(
                f"{', '.join(given)} cannot be combined with {kind}, as in {stock_class.__name__}. Drop one of them."
            )
        return {name: value for name, value in arguments.items() if name in taken}

    def _steps(self, steps: int | None, timesteps: list[int] | None, strength: float | None) -> list[int]:
        """Return the timesteps to visit after checking them; `strength` is None without an image."""
        known = self.student_timesteps
        if timesteps is None:
            if steps is None:
                steps = 1 if strength is None else fewest_steps(strength, most=len(known))
            return self.sampling_timesteps(steps)
        if not timesteps or list(timesteps) != sorted(set(timesteps) & set(known), reverse=True):
            raise ValueError(f"timesteps={timesteps} must be a descending selection of the student's {known}.")
        if timesteps[0] != max(known) and strength is None:
            raise ValueError(f"timesteps={timesteps} must start at {max(known)} without image, from pure noise.")
        return list(timesteps)

    def _stock_schedule(self, steps: list[int]) -> dict[str, Any]:
        """Return the arguments with which a stock call visits `steps`: the number of steps if that is sufficient."""
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

    def _stock_strength(self, strength: float, num_inference_steps: int) -> float:
        """Return the strength with which a stock call leaves int(strength * num_inference_steps) steps: the same."""
        return strength

    def _seen_as(self, stock_class: type) -> Any:
        """Return a view of this pipeline as another stock class.

        Unlike a second pipeline with the same components, the view shares ONE state with this pipeline, so interrupting
        callbacks, offloading hooks and properties act on both. Only the config also has the defaults of that class.
        """
        parameters = inspect.signature(stock_class.__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        config = property(lambda view: FrozenDict(defaults | dict(view._internal_dict)))
        view = object.__new__(type(stock_class.__name__, (Float32LatentsMixin, stock_class), {"config": config}))
        view.__dict__ = self.__dict__
        return view


def _is(value: Any, default: Any) -> bool:
    """Return whether an argument has its default value; tensors are not compared."""
    return value is default or (isinstance(value, int | float) and value == default)

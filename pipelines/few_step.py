"""What the students' pipelines of all families share: the timesteps, the three kinds of call, loading and publishing.

A pipeline is published as ONE file that runs alone, `pipeline.py`: the family's file with the text of this one and of
`optimize.py` in place of the lines that import them. So they import the standard library, torch and diffusers only.
"""

import inspect
import json
import math
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from diffusers.configuration_utils import FrozenDict
from diffusers.image_processor import VaeImageProcessor

DEFAULT_STUDENT_TIMESTEPS = (249, 499, 749, 999)

# What diffusers and transformers note in configs about where a model was loaded from: a local path of no one's concern,
# and the reason why saving a loaded model would not give the same files.
_LOADING_TRACES = ("_name_or_path", "is_local", "local_files_only")
# Arguments that mean nothing without another one.
_NEEDS = {"strength": "image", "mask_image": "image", "padding_mask_crop": "mask_image"}


def whole_source(file: str) -> bytes:
    """The source of the module `file`, with those of its neighbours in place of the lines that import them.

    In a pipeline that was loaded from a repository no such line is left, and its source comes back as it is.
    """
    line, folder = rb"^from pipelines\.(\w+) import .*\n", Path(file).parent
    text = Path(file).read_bytes()
    return re.sub(line, lambda found: (folder / f"{found[1].decode()}.py").read_bytes(), text, flags=re.MULTILINE)


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
    """Raise a ValueError unless 0 < strength <= 1 and strength * num_inference_steps >= 1: a step must be left."""
    if not (0 < strength <= 1 and int(strength * num_inference_steps) >= 1):
        least = math.ceil(100 / num_inference_steps) / 100  # rounded up, so that the product is not below 1
        raise ValueError(
            f"strength={strength} with num_inference_steps={num_inference_steps} leaves no step: strength lies in "
            f"(0, 1] and strength * num_inference_steps must be at least 1. Use a strength of at least {least}, or "
            "more steps."
        )


class FewStepMixin:
    """Makes a stock pipeline one for students, in 1 to N steps: `image = pipe("a red fox").images[0]`.

    Text-to-image, image-to-image and inpainting are the stock pipelines' own calls on this pipeline's components, at
    the student's timesteps. So LoRA, textual inversion, IP-Adapter, offloading and callbacks work as ever, and the
    image is the stock pipeline's, bit for bit, for the same arguments wherever its scheduler takes the same timesteps:
    always at 1, 2 and 4 steps of the default student, otherwise when it is passed `timesteps=` of
    `pipe.sampling_timesteps(n)`.

    The scheduler is a stock one and decides what happens between steps. The published `DDPMScheduler` draws from the
    posterior q(x_t' | x_t, x0), which is what an Euler-ancestral sampler with eta = 1 does, started from unit noise
    as in training. Full re-noising of x0, as in multistep consistency sampling, is the stock
    `pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=1000)`.

    Arguments of a call, where they are not the stock pipelines':

        num_inference_steps: 1 to N for a student of N timesteps; 1 by default.
        timesteps: the student's timesteps to visit, descending, in place of `num_inference_steps`. From text they
            start at the student's largest, since the start is pure noise.
        guidance_scale: the student was trained without guidance, and 0 to 1 mean none, the default. More than 1 is
            honoured at the price of a second UNet pass a step, and needed for negative prompts to have any effect.
        image: makes it image-to-image: pixels `(B, 3, H, W)` in [0, 1], a PIL image, an array, latents, or a list of
            them. The output has its size.
        mask_image: with `image`, makes it inpainting: white is drawn anew, black is kept. Pixels `(B, 1, H, W)`, a PIL
            image or an array. The output has `height` and `width`, by default the UNet's own, as in stock inpainting.
        padding_mask_crop: with `mask_image`, paint in a crop around the mask, with a margin of so many pixels.
        strength: in (0, 1], with `image`: the last int(strength * steps) timesteps are sampled. At least one must
            remain, so one step means strength 1, and 2 steps with strength 0.5 start from the student's middle
            timestep. By default 0.8, and 1 with `mask_image`.

    A family's class names its three stock classes and its UNet's kind of added conditioning, and keeps its `_source`.
    """

    _stock_class: ClassVar[type]
    _image_class: ClassVar[type]
    _inpaint_class: ClassVar[type]
    _addition_embed_type: ClassVar[str | None]
    _source: ClassVar[bytes]
    # Classes for repositories of other families, by the stock class in their model_index.json. A file that runs alone
    # knows none; the package fills it in.
    _other_families: ClassVar[dict[str, type]] = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a student's repository, or any of the family's stock class; arguments as in `DiffusionPipeline`.

        Raises:
            ValueError: if the repository holds another family of models, before its weights are downloaded.
        """
        hub_keys = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision")
        hub_kwargs = {key: kwargs[key] for key in hub_keys if key in kwargs}
        found = cls.load_config(pretrained_model_name_or_path, **hub_kwargs)["_class_name"]
        if found in cls._other_families:
            return cls._other_families[found].from_pretrained(pretrained_model_name_or_path, **kwargs)
        if found != cls._stock_class.__name__:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {found}, but {cls.__name__} samples a "
                f"{cls._stock_class.__name__}. Load it with diffusers.DiffusionPipeline.from_pretrained."
            )
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def register_modules(self, **modules) -> None:
        """Take the components, as every way to make a pipeline does: loading, `from_pipe`, `from_single_file`.

        Raises:
            ValueError: for a UNet of another family, which stock loaders would accept and then fail with in mid-call.
        """
        found = getattr(getattr(modules.get("unet"), "config", None), "addition_embed_type", self._addition_embed_type)
        if found != self._addition_embed_type:
            raise ValueError(
                f"{type(self).__name__} samples a {self._stock_class.__name__}, whose UNet has addition_embed_type="
                f"{self._addition_embed_type!r}, but this one has {found!r}: it belongs to another family. Use that "
                "family's pipeline: ADDPipeline for Stable Diffusion, ADDXLPipeline for SDXL."
            )
        super().register_modules(**modules)

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

    def _sample(self, arguments: dict[str, Any]) -> Any:
        """Make the stock call that `image` and `mask_image` ask for, from all arguments of ours by their names."""
        arguments = {name: value for name, value in arguments.items() if name != "self"}
        image, mask = arguments["image"] is not None, arguments["mask_image"] is not None
        stock_class = self._inpaint_class if image and mask else self._image_class if image else self._stock_class
        steps = self._steps(arguments.pop("num_inference_steps"), arguments.pop("timesteps"), from_image=image)
        arguments = self._arguments_of(stock_class, arguments)
        arguments["callback_on_step_end_tensor_inputs"] = list(arguments["callback_on_step_end_tensor_inputs"])
        if image:
            default = 1.0 if mask else 0.8
            arguments["strength"] = default if arguments["strength"] is None else arguments["strength"]
            check_strength(arguments["strength"], len(steps))
        if mask:  # which a stock inpainting pipeline has from its start
            self.mask_processor = VaeImageProcessor(
                vae_scale_factor=self.vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
            )
        stock = self._seen_as(stock_class) if image else self
        return stock_class.__call__(stock, **arguments, **self._stock_schedule(steps))

    def _arguments_of(self, stock_class: type, arguments: dict[str, Any]) -> dict[str, Any]:
        """Those that the stock call takes; the others must have been left at their defaults."""
        taken = set(inspect.signature(stock_class.__call__).parameters)
        if stock_class is self._image_class:
            taken -= {"height", "width", "latents"}  # SDXL's takes latents, and drops the image without a word
        ours = inspect.signature(type(self).__call__).parameters
        given = [name for name in arguments if name not in taken and not _is(arguments[name], ours[name].default)]
        for name in given:
            if name in _NEEDS:
                value = f"={arguments[name]}" if isinstance(arguments[name], int | float) else ""
                needed = _NEEDS[name]
                raise ValueError(f"{name}{value} has no meaning without {needed}. Pass {needed}, or drop {name}.")
        if given:
            kind = "mask_image" if stock_class is self._inpaint_class else "image"
            raise ValueError(f"{', '.join(given)} cannot go with {kind}, as in {stock_class.__name__}. Drop either.")
        return {name: value for name, value in arguments.items() if name in taken}

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
        get wrong. Only what its config has beyond ours comes from that class's own defaults."""
        parameters = inspect.signature(stock_class.__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        config = property(lambda view: FrozenDict(defaults | dict(view._internal_dict)))
        view = object.__new__(type(stock_class.__name__, (stock_class,), {"config": config}))
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


def _is(value: Any, default: Any) -> bool:
    """Whether an argument was left at its default; tensors are not compared."""
    return value is default or (isinstance(value, int | float) and value == default)

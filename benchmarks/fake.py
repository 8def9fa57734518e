"""A run at full size whose tensors have shapes and no contents: the real networks, losses and updates, and no memory.

It stands on torch's fake tensors. They say that they are on a CPU, since a torch without CUDA has no other device whose
backward it could follow; where CUDA's rules differ and memory depends on it, CUDA's are followed.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar
from unittest import mock

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from bitsandbytes.functional import create_dynamic_map
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from benchmarks.architectures import (
    ARCHITECTURES,
    DINOV2_L,
    DINOV2_S,
    TEXT_LENGTH,
    Architecture,
    make_dinov2,
    make_openclip_g,
    make_tiny_vae,
)
from benchmarks.packed import pack_linears
from discriminator import AUGMENT_NUMBERS, Discriminator, FeatureNetwork, ImageCondition
from discriminator.pretrained import move
from distillation.latents import LatentSpace, Window
from distillation.losses import Batch
from distillation.noise import SampleNoise
from distillation.schedule import NoiseSchedule
from distillation.teacher import TeacherConditions
from train_add import iteration
from training.models.lora import add_lora
from training.models.networks import QUANTIZED, Networks, prepare_output_layers
from training.optimization import Updater
from training.options.derived import guiding_prompts
from training.options.options import Options
from training.run.players import Players, make_players

Network = TypeVar("Network", bound=nn.Module)
CONDITION_DIM = 2048  # of c: CLIP ViT-g-14 and DINOv2 ViT-L
# What autocast does in float32 on CUDA and leaves alone on a CPU, of what is used here.
IN_FLOAT32 = ("group_norm", "layer_norm", "interpolate")


class Encoders(nn.ModuleList):
    """What the cache takes the place of, the autoencoder aside: text encoders, CLIP ViT-g-14, DINOv2 ViT-L."""

    def __init__(self, architecture: Architecture):
        texts = [*architecture.make_text_encoders(), make_openclip_g()]
        super().__init__([*texts, ImageCondition(make_dinov2(DINOV2_L))])

    @torch.no_grad()
    def forward(self, x0: Tensor) -> None:
        """Encode the images `x0` and as many captions."""
        *texts, image = self
        ids = torch.empty(len(x0), TEXT_LENGTH, dtype=torch.long)
        for encoder in texts:
            encoder(ids)
        image(x0)


@dataclass(frozen=True)
class FakeRun:
    """The parts of a run that an iteration uses.

    Attributes:
        encoders: of captions, c_text and c_img; None where those are read from the cache.
    """

    options: Options
    architecture: Architecture
    networks: Networks
    players: Players
    encoders: Encoders | None

    def tensors(self) -> Iterator[Tensor]:
        """Everything that is in memory before the first iteration."""
        space = self.networks.latents
        networks = (self.networks.student, self.networks.teacher, space.vae, space.decoder)
        for module in (*networks, self.players.losses.discriminator, self.encoders):
            if module is not None:
                yield from module.parameters()
                yield from module.buffers()
        if self.players.ema is not None:
            yield from self.players.ema.shadow_params

    def run_iteration(self, batch_size: int) -> None:
        """One iteration, as the training script has it."""
        accumulated = self.options.optimization.gradient_accumulation_steps
        iteration(self.players, [self._batch(batch_size) for _ in range(accumulated)])

    def _batch(self, b: int) -> Batch:
        options, side = self.options, self.options.data.resolution // self.networks.latents.factor
        z, t, numbers = torch.empty(b, 4, side, side), torch.empty(b, dtype=torch.long), torch.empty(b, AUGMENT_NUMBERS)
        x0 = torch.empty(b, 3, options.data.resolution, options.data.resolution)
        if self.encoders is not None:
            self.networks.latents.moments(x0)
            self.encoders(x0)
        condition = self.architecture.empty_condition(b, half(options))
        decode_window = None
        if options.hardware.decode_crop_size is not None:
            size = options.hardware.decode_crop_size // self.networks.latents.factor
            decode_window = Window.draw((side, side), size, (0.5, 0.5))
        return Batch(
            x0=x0,
            z0_moments=(z, z),
            condition=condition,
            teacher_conditions=TeacherConditions(*[condition] * (1 + len(guiding_prompts(options)))),
            c=torch.empty(b, CONDITION_DIM),
            noise=SampleNoise(z, t, z, t, z, numbers, numbers),
            discriminator_crop=(0.9, 0.5, 0.5),
            decode_window=decode_window,
        )


@contextmanager
def fake_run(model: str, options: Options) -> Iterator[FakeRun]:
    """The run that the `options` ask for on `model`, in a mode where tensors have no contents.

    Nothing inside can ask for a tensor's value.
    """
    architecture, functional = ARCHITECTURES[model], torch.nn.functional
    with torch.device("meta"):  # a fake tensor can't be cast, and peft can't adapt what is made of them
        networks = _make_networks(architecture, options)
        discriminator = _make_discriminator(options) if options.method.adversarial_weight > 0 else None
        encoders = None if options.hardware.cache_dir_latents else Encoders(architecture).to(half(options)).eval()
    with ExitStack() as stack:
        for name in IN_FLOAT32:
            stack.enter_context(mock.patch.object(functional, name, _in_float32(getattr(functional, name))))
        # The 8-bit optimizer reads the values of a table that it makes, and its guard whether the loss is finite.
        table = create_dynamic_map(signed=True)
        stack.enter_context(mock.patch("bitsandbytes.functional.create_dynamic_map", return_value=table))
        stack.enter_context(mock.patch.object(Updater, "_guarded_step", lambda updater, _: updater.optimizer.step()))
        AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps its device for a process
        stack.callback(AcceleratorState._reset_state, reset_partial_state=True)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        space = networks.latents
        for module in {networks.student, networks.teacher, space.vae, space.decoder, discriminator, encoders} - {None}:
            module.to_empty(device="cpu")
        yield _assemble(architecture, options, networks, discriminator, encoders)


def half(options: Options) -> torch.dtype:
    """The precision of frozen networks; fp16 is as wide as bf16, and only the latter can be had on a CPU."""
    return torch.float32 if options.hardware.mixed_precision == "no" else torch.bfloat16


def _in_float32(function: Callable) -> Callable:
    def call(*args, **kwargs):
        if torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(lambda x: x.float() if isinstance(x, Tensor) else x, (args, kwargs))
        return function(*args, **kwargs)

    return call


def _make_networks(architecture: Architecture, options: Options) -> Networks:
    """As `training.models.networks.load_networks`, from configs and on whatever device is the default."""

    def frozen(network: Network, dtype: torch.dtype) -> Network:
        nn.Module.to(network, dtype)
        return network.eval().requires_grad_(False)

    def frozen_unet() -> UNet2DConditionModel:
        precision = options.hardware.teacher_precision
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16 if precision else half(options)
        unet = frozen(architecture.make_unet(), dtype)
        return pack_linears(unet, int(precision[0])) if precision in QUANTIZED else unet

    vae = frozen(architecture.make_vae(), half(options))
    tiny = None if options.hardware.pretrained_tiny_vae_model is None else frozen(make_tiny_vae(), half(options))
    if options.lora.use_lora:
        student = frozen_unet()
        prepare_output_layers(student, options, architecture.prediction_type)
        add_lora(student, options.lora)
    else:
        student = architecture.make_unet()
        prepare_output_layers(student, options, architecture.prediction_type)
    teacher = None
    if options.method.distillation_weight > 0:
        teacher = student if options.lora.use_lora else frozen_unet()
    if options.hardware.gradient_checkpointing:
        student.enable_gradient_checkpointing()
        vae.enable_gradient_checkpointing()
    return Networks(student.train(), teacher, LatentSpace(vae, tiny, options.hardware.decode_crop_halo), None)


def _make_discriminator(options: Options) -> Discriminator:
    own = options.discriminator
    network = FeatureNetwork(move(make_dinov2(DINOV2_S), half(options)), input_size=own.discriminator_input_size or 224)
    return Discriminator(network, CONDITION_DIM, not own.no_diffaugment, own.discriminator_norm)


def _assemble(
    architecture: Architecture,
    options: Options,
    networks: Networks,
    discriminator: Discriminator | None,
    encoders: Encoders | None,
) -> FakeRun:
    precision = "no" if options.hardware.mixed_precision == "no" else "bf16"
    accelerator = Accelerator(cpu=True, device_placement=False, mixed_precision=precision)
    alphas = torch.linspace(0.9999, 0.0047, 1000)
    schedule = NoiseSchedule(alphas.sqrt(), (1 - alphas).sqrt(), architecture.prediction_type)
    players = make_players(options, accelerator, networks, discriminator, (schedule, schedule), total_steps=1000)
    return FakeRun(options, architecture, networks, players, encoders)

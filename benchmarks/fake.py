"""Full-size runs with fake tensors, which have shapes but no data: real networks, losses and updates without memory.

The fake tensors of torch are on the device "cpu", because without CUDA there is no other device with a backward pass.
Where the memory depends on differences between CPU and CUDA, the behavior of CUDA is used.
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
from discriminator import AUGMENT_NUMBERS, Discriminator, FeatureNetwork, ImageCondition, LatentDiscriminator
from discriminator.pretrained import move
from distillation.latents import LatentSpace, Window
from distillation.losses import Batch
from distillation.noise import SampleNoise
from distillation.schedule import NoiseSchedule
from distillation.teacher import TeacherConditions
from train_add import iteration
from training.models.discriminators import make_latent_discriminator
from training.models.lora import add_lora
from training.models.networks import QUANTIZED, Networks, enable_gradient_checkpointing, prepare_output_layers
from training.optimization import Updater
from training.options.derived import guiding_prompts, needs_teacher, uses_latent_discriminator
from training.options.options import Options
from training.run.players import Players, make_players

Network = TypeVar("Network", bound=nn.Module)
CONDITION_DIM = 2048  # dimension of c: CLIP ViT-g-14 and DINOv2 ViT-L
# Functions that autocast runs in float32 on CUDA but not on a CPU.
IN_FLOAT32 = ("group_norm", "layer_norm", "interpolate")


class Encoders(nn.ModuleList):
    """What the cache takes the place of, the autoencoder aside: text encoders; for pixels CLIP ViT-g-14, DINOv2 ViT-L.

    The latent discriminator's pooled caption is a second call of the teacher's last text encoder.
    """

    def __init__(self, architecture: Architecture, is_latent: bool):
        texts = architecture.make_text_encoders()
        super().__init__(texts if is_latent else [*texts, make_openclip_g(), ImageCondition(make_dinov2(DINOV2_L))])
        self.is_latent = is_latent

    @torch.no_grad()
    def forward(self, x0: Tensor) -> None:
        """Encode the images `x0` and the same number of captions."""
        texts = [*self, self[-1]] if self.is_latent else list(self)[:-1]
        ids = torch.empty(len(x0), TEXT_LENGTH, dtype=torch.long)
        for encoder in texts:
            encoder(ids)
        if not self.is_latent:
            self[-1](x0)


@dataclass(frozen=True)
class FakeRun:
    """The parts of a run that an iteration uses.

    Attributes:
        encoders: encoders of captions, c_text and c_img; None if their outputs are read from the cache.
    """

    options: Options
    architecture: Architecture
    networks: Networks
    players: Players
    encoders: Encoders | None

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors that are in memory before the first iteration."""
        space = self.networks.latents
        networks = (self.networks.student, self.networks.teacher, space.vae, space.decoder)
        for module in (*networks, self.players.losses.discriminator, self.encoders):
            if module is not None:
                yield from module.parameters()
                yield from module.buffers()
        if self.players.ema is not None:
            yield from self.players.ema.shadow_params

    def run_iteration(self, batch_size: int) -> None:
        """Run one iteration as in the training script."""
        accumulated = self.options.optimization.gradient_accumulation_steps
        count = accumulated * self.options.discriminator.discriminator_steps
        iteration(self.players, [self._batch(batch_size) for _ in range(count)])

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
            c=torch.empty(b, _condition_dim(self.architecture, options)),
            noise=SampleNoise(z, t, z, t, z, numbers, numbers, t, z),
            discriminator_crop=(0.9, 0.5, 0.5),
            decode_window=decode_window,
        )


@contextmanager
def fake_run(model: str, options: Options) -> Iterator[FakeRun]:
    """Context manager that makes the run for `options` on `model` and enables a mode with fake tensors.

    Within the context, values of tensors cannot be read.
    """
    architecture, functional = ARCHITECTURES[model], torch.nn.functional
    with torch.device("meta"):  # fake tensors cannot be cast, and peft cannot adapt modules with fake tensors
        networks = make_networks(architecture, options)
        discriminator = make_discriminator(architecture, options, networks)
        is_cached, is_latent = options.hardware.cache_dir_latents is not None, uses_latent_discriminator(options)
        encoders = None if is_cached else Encoders(architecture, is_latent).to(half(options)).eval()
    with ExitStack() as stack:
        for name in IN_FLOAT32:
            stack.enter_context(mock.patch.object(functional, name, _in_float32(getattr(functional, name))))
        # The 8-bit optimizer reads the values of a table, and its guard whether the loss is finite.
        table = create_dynamic_map(signed=True)
        stack.enter_context(mock.patch("bitsandbytes.functional.create_dynamic_map", return_value=table))
        stack.enter_context(mock.patch.object(Updater, "_guarded_step", lambda updater, _: updater.optimizer.step()))
        AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps its device for the whole process
        stack.callback(AcceleratorState._reset_state, reset_partial_state=True)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        space = networks.latents
        for module in {networks.student, networks.teacher, space.vae, space.decoder, discriminator, encoders} - {None}:
            module.to_empty(device="cpu")
        yield _assemble(architecture, options, networks, discriminator, encoders)


def half(options: Options) -> torch.dtype:
    """The dtype of frozen networks. fp16 is counted as bf16, which has the same size and is supported on a CPU."""
    return torch.float32 if options.hardware.mixed_precision == "no" else torch.bfloat16


def _in_float32(function: Callable) -> Callable:
    def call(*args, **kwargs):
        if torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(lambda x: x.float() if isinstance(x, Tensor) else x, (args, kwargs))
        return function(*args, **kwargs)

    return call


def make_networks(architecture: Architecture, options: Options) -> Networks:
    """Make networks as in `training.models.networks.load_networks`, but from configs and on the default device."""

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
    if needs_teacher(options):
        teacher = student if options.lora.use_lora else frozen_unet()
    latents = LatentSpace(vae, tiny, options.hardware.decode_crop_halo)
    if options.hardware.gradient_checkpointing:
        enable_gradient_checkpointing(options, student, teacher, latents)
    return Networks(student.train(), teacher, latents, None)


def _condition_dim(architecture: Architecture, options: Options) -> int:
    """D of c: of the latent discriminator that of the teacher's pooled caption."""
    if not uses_latent_discriminator(options):
        return CONDITION_DIM
    last = architecture.text_encoders[-1]
    return last["hidden_size"] if architecture.layout == "sd" else last["projection_dim"]


def make_discriminator(
    architecture: Architecture, options: Options, networks: Networks
) -> Discriminator | LatentDiscriminator | None:
    """Make the discriminator as in `training.models.discriminators`, but from a config and on the default device."""
    own = options.discriminator
    if options.method.adversarial_weight == 0:
        return None
    if uses_latent_discriminator(options):
        return make_latent_discriminator(options, networks, _condition_dim(architecture, options))
    network = FeatureNetwork(move(make_dinov2(DINOV2_S), half(options)), input_size=own.discriminator_input_size or 224)
    return Discriminator(network, CONDITION_DIM, not own.no_diffaugment, own.discriminator_norm)


def _assemble(
    architecture: Architecture,
    options: Options,
    networks: Networks,
    discriminator: Discriminator | LatentDiscriminator | None,
    encoders: Encoders | None,
) -> FakeRun:
    precision = "no" if options.hardware.mixed_precision == "no" else "bf16"
    accelerator = Accelerator(cpu=True, device_placement=False, mixed_precision=precision)
    alphas = torch.linspace(0.9999, 0.0047, 1000)
    schedule = NoiseSchedule(alphas.sqrt(), (1 - alphas).sqrt(), architecture.prediction_type)
    players = make_players(options, accelerator, networks, discriminator, (schedule, schedule), total_steps=1000)
    return FakeRun(options, architecture, networks, players, encoders)

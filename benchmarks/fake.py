"""A run at full size whose tensors have shapes and no contents: the real networks, losses and updates, and no memory.

It stands on torch's fake tensors. They say that they are on a CPU, since a torch without CUDA has no other device whose
backward it could follow; where CUDA's rules differ and memory depends on it, CUDA's are followed.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from bitsandbytes.functional import create_dynamic_map
from diffusers.training_utils import EMAModel
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
from distillation.latents import LatentSpace, Window
from distillation.losses import Batch, Losses
from distillation.noise import SampleNoise
from distillation.schedule import NoiseSchedule
from distillation.teacher import TeacherConditions
from training.iteration import train_iteration
from training.models.lora import add_lora
from training.models.networks import QUANTIZED, Networks, make_losses
from training.optimization import Updater, discriminator_optimizer, learning_rate_schedule, student_optimizer
from training.options.derived import guiding_prompts

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
    """What a trainer has when its first iteration begins.

    Attributes:
        encoders: of captions, c_text and c_img; none where those are read from the cache.
    """

    args: argparse.Namespace
    architecture: Architecture
    losses: Losses
    networks: Networks
    updaters: dict[str, Updater]
    ema: EMAModel | None
    accelerator: Accelerator
    encoders: Encoders | None

    def tensors(self) -> Iterator[Tensor]:
        """Everything that lies in memory before the first iteration."""
        space = self.networks.latents
        modules = (self.networks.student, self.networks.teacher, space.vae, space.decoder, self.losses.discriminator)
        for module in (*modules, self.encoders):
            if module is not None:
                yield from module.parameters()
                yield from module.buffers()
        if self.ema is not None:
            yield from self.ema.shadow_params

    def run_iteration(self, batch_size: int) -> None:
        """One iteration as the training loop has it."""
        micro_batches = [self._batch(batch_size) for _ in range(self.args.gradient_accumulation_steps)]
        train_iteration(self.losses, micro_batches, self.updaters, self.accelerator)
        if self.ema is not None:
            self.ema.step([p for p in self.networks.student.parameters() if p.requires_grad])

    def _batch(self, b: int) -> Batch:
        args, side = self.args, self.args.resolution // self.networks.latents.factor
        z, t, numbers = torch.empty(b, 4, side, side), torch.empty(b, dtype=torch.long), torch.empty(b, AUGMENT_NUMBERS)
        x0 = torch.empty(b, 3, args.resolution, args.resolution)
        if self.encoders is not None:
            self.networks.latents.moments(x0)
            self.encoders(x0)
        condition = self.architecture.empty_condition(b, half(args))
        decode_window = None
        if args.decode_crop_size is not None:
            decode_window = Window.draw((side, side), args.decode_crop_size // self.networks.latents.factor, (0.5, 0.5))
        return Batch(
            x0=x0,
            z0_moments=(z, z),
            condition=condition,
            teacher_conditions=TeacherConditions(*[condition] * (1 + len(guiding_prompts(args)))),
            c=torch.empty(b, CONDITION_DIM),
            noise=SampleNoise(z, t, z, t, z, numbers, numbers),
            discriminator_crop=(0.9, 0.5, 0.5),
            decode_window=decode_window,
        )


@contextmanager
def fake_run(model: str, args: argparse.Namespace) -> Iterator[FakeRun]:
    """The run that the training scripts' flags `args` ask for on `model`, in a mode where tensors have no contents.

    Nothing inside can ask for a tensor's value.
    """
    architecture, functional = ARCHITECTURES[model], torch.nn.functional
    with torch.device("meta"):  # a fake tensor can't be cast, and peft can't adapt what is made of them
        networks = _make_networks(architecture, args)
        discriminator = _make_discriminator(args) if args.adversarial_weight > 0 else None
        encoders = None if args.cache_dir_latents else Encoders(architecture).to(half(args)).eval()
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
        yield _assemble(architecture, args, networks, discriminator, encoders)


def half(args: argparse.Namespace) -> torch.dtype:
    """The precision of frozen networks; fp16 is as wide as bf16, and only the latter can be had on a CPU."""
    return torch.float32 if args.mixed_precision == "no" else torch.bfloat16


def _in_float32(function: Callable) -> Callable:
    def call(*args, **kwargs):
        if torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(lambda x: x.float() if isinstance(x, Tensor) else x, (args, kwargs))
        return function(*args, **kwargs)

    return call


def _make_networks(architecture: Architecture, args: argparse.Namespace) -> Networks:
    """As `training.models.networks.load_networks`, from configs and on whatever device is the default."""

    def frozen(network: nn.Module, dtype: torch.dtype) -> nn.Module:
        return nn.Module.to(network, dtype).eval().requires_grad_(False)

    def frozen_unet() -> nn.Module:
        precision = args.teacher_precision
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16 if precision else half(args)
        unet = frozen(architecture.make_unet(), dtype)
        return pack_linears(unet, int(precision[0])) if precision in QUANTIZED else unet

    vae = frozen(architecture.make_vae(), half(args))
    tiny = None if args.pretrained_tiny_vae_model is None else frozen(make_tiny_vae(), half(args))
    if args.use_lora:
        student = frozen_unet()
        add_lora(student, args)
    else:
        student = architecture.make_unet()
    teacher = None
    if args.distillation_weight > 0:
        teacher = student if args.use_lora else frozen_unet()
    if args.gradient_checkpointing:
        student.enable_gradient_checkpointing()
        vae.enable_gradient_checkpointing()
    return Networks(student.train(), teacher, LatentSpace(vae, tiny, args.decode_crop_halo), None)


def _make_discriminator(args: argparse.Namespace) -> Discriminator:
    network = FeatureNetwork(make_dinov2(DINOV2_S).to(half(args)), input_size=args.discriminator_input_size or 224)
    return Discriminator(network, CONDITION_DIM, not args.no_diffaugment, args.discriminator_norm)


def _assemble(
    architecture: Architecture,
    args: argparse.Namespace,
    networks: Networks,
    discriminator: Discriminator | None,
    encoders: Encoders | None,
) -> FakeRun:
    precision = "no" if args.mixed_precision == "no" else "bf16"
    accelerator = Accelerator(cpu=True, device_placement=False, mixed_precision=precision)
    trainable = [p for p in networks.student.parameters() if p.requires_grad]
    optimizers = {"student": student_optimizer(trainable, args, 1)}
    if discriminator is not None:
        optimizers["discriminator"] = discriminator_optimizer(discriminator.heads.parameters(), args, 1)
    updaters = {
        name: Updater(accelerator, accelerator.prepare(o), learning_rate_schedule(o, args, 1000), args.max_grad_norm)
        for name, o in optimizers.items()
    }
    alphas = torch.linspace(0.9999, 0.0047, 1000)
    schedule = NoiseSchedule(alphas.sqrt(), (1 - alphas).sqrt(), architecture.prediction_type)
    losses = make_losses(
        args, networks, accelerator.prepare_model(networks.student), discriminator, (schedule, schedule), accelerator
    )
    ema = EMAModel(trainable, decay=args.ema_decay, foreach=True) if args.use_ema else None
    return FakeRun(args, architecture, losses, networks, updaters, ema, accelerator, encoders)

"""FLOPs, parameters and activations of one iteration, counted on the meta device: no weights, no time.

It is the real step that is counted, `training.step.ADDStep` with the real networks, not a sum of assumptions.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.architectures import ARCHITECTURES, DINOV2_L, DINOV2_S, TEXT_LENGTH, make_dinov2, make_tiny_vae
from discriminator import AUGMENT_NUMBERS, Discriminator, FeatureNetwork
from distillation.latents import LatentSpace, Window
from distillation.schedule import NoiseSchedule
from distillation.teacher import Teacher, TeacherConditions
from training.draws import Draws
from training.lora import add_lora, without_adapter
from training.step import ADDStep, Batch

TERA, GIB = 1e12, 2**30


@dataclass(frozen=True)
class Cost:
    """Of one iteration.

    Attributes:
        tflop: 1 multiply-add counts as 2.
        activations_gib: bytes that the student's backward keeps, without parameters.
        trainable, frozen: parameters of the UNets.
    """

    tflop: float
    activations_gib: float
    trainable: int
    frozen: int


@contextmanager
def counted_flops() -> Iterator[list[float]]:
    """Appends the TFLOP of what ran inside."""
    result: list[float] = []
    with FlopCounterMode(display=False) as counter:
        yield result
    result.append(counter.get_total_flops() / TERA)


class Activations:
    """What autograd keeps of forward passes, memory that is shared once and parameters not at all.

    With gradient checkpointing, blocks keep their inputs alone; `checkpoint` is then to be the networks' function.
    """

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}

    def add(self, tensor: Tensor) -> Tensor:
        """Count one, and hold it: its storage's address would be given to another."""
        self.kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def checkpoint(self, module: nn.Module, *args):
        """diffusers' own function of gradient checkpointing, and a look at what goes into the block."""
        for leaf in tree_leaves(args):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return torch.utils.checkpoint.checkpoint(module.__call__, *args, use_reentrant=False)

    def gib(self, parameters: list[Tensor]) -> float:
        """The sum, without `parameters`."""
        known = {p.untyped_storage()._cdata for p in parameters}
        return sum(t.untyped_storage().nbytes() for key, t in self.kept.items() if key not in known) / GIB


def make_step(
    model: str, args: argparse.Namespace, activations: Activations, dtype: torch.dtype = torch.bfloat16
) -> ADDStep:
    """The step of a run with `args` (the scripts' flags) on the meta device, everything in `dtype`."""
    architecture = ARCHITECTURES[model]
    with torch.device("meta"):
        student = _cast(architecture.make_unet(), dtype).train()
        vae = _cast(architecture.make_vae(), dtype).eval().requires_grad_(False)
        network = FeatureNetwork(make_dinov2(DINOV2_S).to(dtype), input_size=args.discriminator_input_size or 224)
        discriminator = Discriminator(network, 2048, not args.no_diffaugment, args.discriminator_norm)
        tiny = None
        if args.pretrained_tiny_vae_model is not None:
            tiny = _cast(make_tiny_vae(), dtype).eval().requires_grad_(False)
        if args.use_lora:
            add_lora(student, args)
            _cast(student, dtype)  # what autocast makes of the adapter
            teacher = without_adapter(student)
        else:
            teacher = _cast(architecture.make_unet(), dtype).eval().requires_grad_(False)
    if args.gradient_checkpointing:
        student.enable_gradient_checkpointing(activations.checkpoint)
        vae.enable_gradient_checkpointing(activations.checkpoint)
    schedule = _schedule(architecture.prediction_type)
    return ADDStep(
        student=_Cast(student, dtype),
        schedule=schedule,
        latents=LatentSpace(vae, tiny, args.decode_crop_halo),
        teacher=Teacher(_Cast(teacher, dtype), schedule),
        teacher_latents=None,
        discriminator=discriminator,
        heads=discriminator.heads,
        distillation_space=args.distillation_space,
        reconstruct_real=args.reconstruct_real,
        r1_gamma=0,  # torch's counter cannot follow autograd.grad; in the heads it is a few thousandths of a TFLOP
    )


def _cast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    return nn.Module.to(network, dtype)  # diffusers' own `to` warns that from_pretrained could do this


class _Cast(nn.Module):
    """Stands for autocast, which does nothing on the meta device."""

    def __init__(self, unet, dtype: torch.dtype):
        super().__init__()
        self.unet, self.dtype = unet, dtype

    def forward(self, x: Tensor, t: Tensor, **condition):
        return self.unet(x.to(self.dtype), t, **condition)


def _schedule(prediction_type: str) -> NoiseSchedule:
    alphas = torch.linspace(0.9999, 0.0047, 1000, device="meta")
    return NoiseSchedule(alphas.sqrt(), (1 - alphas).sqrt(), prediction_type)


def make_batch(model: str, args: argparse.Namespace, dtype: torch.dtype = torch.bfloat16) -> Batch:
    """One batch on the meta device."""
    unet, b, side = ARCHITECTURES[model].unet, args.train_batch_size, args.resolution // 8
    with torch.device("meta"):
        z, t = torch.empty(b, 4, side, side), torch.empty(b, dtype=torch.long)
        condition = {"encoder_hidden_states": torch.empty(b, TEXT_LENGTH, unet["cross_attention_dim"], dtype=dtype)}
        if ARCHITECTURES[model].layout == "sdxl":
            added = {"text_embeds": torch.empty(b, 1280, dtype=dtype), "time_ids": torch.empty(b, 6)}
            condition["added_cond_kwargs"] = added
        numbers = torch.empty(b, AUGMENT_NUMBERS)
        window = None
        if args.decode_crop_size is not None:
            window = Window.draw((side, side), args.decode_crop_size // 8, (0.5, 0.5))
        return Batch(
            x0=torch.empty(b, 3, args.resolution, args.resolution),
            z0=(z, z),
            condition=condition,
            teacher_conditions=TeacherConditions(condition),
            c=torch.empty(b, 2048),
            draws=Draws(z, t, z, t, z, numbers, numbers),
            crop=(0.9, 0.5, 0.5),
            window=window,
        )


def count_iteration(model: str, args: argparse.Namespace) -> Cost:
    """One iteration with cached latents and embeddings, both players' backward included."""
    activations = Activations()
    step, batch = make_step(model, args, activations), make_batch(model, args)
    student = step.student.unet
    everything = [p for m in (student, step.latents.vae, step.discriminator) for p in m.parameters()]
    # The meta device has no autocast to switch off.
    with mock.patch.object(torch, "autocast", return_value=nullcontext()), counted_flops() as flops:
        with torch.autograd.graph.saved_tensors_hooks(activations.add, lambda tensor: tensor):
            sample = step.sample(batch)
        step.discriminator_losses(batch, sample)["total"].backward()
        step.student_losses(batch, sample)["total"].backward()
    trainable = sum(p.numel() for p in student.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in student.parameters() if not p.requires_grad)
    if not args.use_lora:
        frozen += sum(p.numel() for p in step.teacher.unet.unet.parameters())
    return Cost(flops[0], activations.gib(everything), trainable, frozen)


def state_gib(model: str, args: argparse.Namespace, cost: Cost) -> float:
    """GiB that lie in memory from step to step: weights, gradients and optimizer of the student, the frozen UNet, the
    autoencoder. Embeddings cached, no EMA; the heads and F are 0.05 GiB and left out.

    Full training keeps float32 weights of its own; LoRA trains on the frozen base. 8-bit Adam has two bytes a weight
    where AdamW has eight, bitsandbytes' linear maps one byte or half of one (and 1/64 float32 for scales).
    """
    per_trainable = 4 + 4 + (2 if args.use_8bit_adam else 8)
    with torch.device("meta"):
        vae = sum(p.numel() for p in ARCHITECTURES[model].make_vae().parameters())
        unet = ARCHITECTURES[model].make_unet()
        linear = sum(m.weight.numel() for m in unet.modules() if isinstance(m, nn.Linear))
    per_linear = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}.get(args.teacher_precision, 2.0)
    frozen = 2 * (cost.frozen - linear) + per_linear * linear
    return (per_trainable * cost.trainable + frozen + 2 * vae) / GIB


def count_components(resolutions: tuple[int, ...] = (512, 1024)) -> dict[str, float]:
    """TFLOP an image of each network by itself: forward, and with `+backward` the whole training pass."""
    found: dict[str, float] = {}

    def forward(name: str, call) -> None:
        with counted_flops() as flops, torch.no_grad():
            call()
        found[name] = flops[0]

    def both(name: str, call) -> None:
        with counted_flops() as flops:
            call().sum().backward()
        found[f"{name} +backward"] = flops[0]

    with torch.device("meta"):
        vae = ARCHITECTURES["sd15"].make_vae().requires_grad_(False)
        tiny = make_tiny_vae().requires_grad_(False)
        for model, side in (("sd15", 512), ("sdxl", 512), ("sdxl", 1024)):
            unet, batch = ARCHITECTURES[model].make_unet(), make_batch(model, _plain(side), torch.float32)
            name = f"{model} UNet @{side}"

            def call(unet=unet, batch=batch):
                return unet(batch.z0[0], batch.draws.t, **batch.condition).sample

            forward(name, call)
            both(name, call)
        for side in (*resolutions, 224):
            z = torch.empty(1, 4, side // 8, side // 8, requires_grad=True)
            forward(f"VAE decode {side}", lambda z=z: vae.decode(z).sample)
            both(f"VAE decode {side}", lambda z=z: vae.decode(z).sample)
        for side in resolutions:
            forward(f"VAE encode {side}", lambda side=side: vae.encode(torch.empty(1, 3, side, side)).latent_dist.mean)
        z = torch.empty(1, 4, 64, 64, requires_grad=True)
        forward("TAESD decode 512", lambda: tiny.decode(z).sample)
        both("TAESD decode 512", lambda: tiny.decode(z).sample)
        for name, config in (("DINOv2-S", DINOV2_S), ("DINOv2-L", DINOV2_L)):
            network = make_dinov2(config).requires_grad_(False)
            for side in (224, 518):
                x = torch.empty(1, 3, side, side, requires_grad=True)
                forward(f"{name} {side}", lambda network=network, x=x: network(x).last_hidden_state)
                if name == "DINOv2-S":
                    both(f"{name} {side}", lambda network=network, x=x: network(x).last_hidden_state)
    return found


def _plain(resolution: int) -> argparse.Namespace:
    return argparse.Namespace(train_batch_size=1, resolution=resolution, decode_crop_size=None)

"""Counts of the FLOPs, memory and parameters of one iteration with fake tensors, without weights or a GPU.

The real iteration is counted, from the student's forward pass to the optimizer steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.architectures import ARCHITECTURES, DINOV2_L, DINOV2_S, make_dinov2, make_tiny_vae
from benchmarks.fake import FakeRun, fake_run
from benchmarks.meter import Meter
from distillation.latents import decode_latents, encode_posterior
from training.options import Options

TERA, GIB = 1e12, 2**30


@dataclass(frozen=True)
class Cost:
    """Cost of one iteration, with latents and embeddings from the cache.

    Attributes:
        batch: number of images per iteration.
        tflop: TFLOP per image; one multiply-add counts as 2 FLOPs.
        peak_gib: peak memory of all tensors. A GPU also needs memory for the CUDA context, the kernels' workspace, and
            fragmentation.
        resting_gib: memory of all tensors between two iterations: weights, averages, optimizer state.
        trainable, frozen: numbers of parameters of the UNets.
    """

    batch: int
    tflop: float
    peak_gib: float
    resting_gib: float
    trainable: int
    frozen: int


def count_iteration(model: str, options: Options, batches: Sequence[int] | None = None) -> list[Cost]:
    """Count the cost for each batch size in `batches`, by default for that of `options`."""
    meter = Meter()
    with fake_run(model, options) as run:
        meter.hold(run.tensors())
        with meter:
            run.run_iteration(1)  # initializes the optimizer state
            return [_measure(run, meter, size) for size in batches or [options.optimization.train_batch_size]]


def _measure(run: FakeRun, meter: Meter, batch: int) -> Cost:
    meter.reset()
    resting = meter.live
    run.run_iteration(batch)
    images = batch * run.options.optimization.gradient_accumulation_steps
    return Cost(
        batch=images,
        tflop=meter.flops / TERA / images,
        peak_gib=meter.peak / GIB,
        resting_gib=resting / GIB,
        trainable=sum(p.numel() for p in run.networks.student.parameters() if p.requires_grad),
        frozen=0 if run.networks.teacher is None else run.architecture.unet_parameters(),
    )


def count_components(resolutions: tuple[int, ...] = (512, 1024)) -> dict[str, float]:
    """Count the TFLOP per image of each network: for the forward pass, and with `+backward` for both passes."""
    found: dict[str, float] = {}

    def forward(name: str, call) -> None:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        found[name] = counter.get_total_flops() / TERA

    def both(name: str, call) -> None:
        with FlopCounterMode(display=False) as counter:
            call().sum().backward()
        found[f"{name} +backward"] = counter.get_total_flops() / TERA

    with torch.device("meta"):
        vae = ARCHITECTURES["sd15"].make_vae().requires_grad_(False)
        tiny = make_tiny_vae().requires_grad_(False)
        for model, side in (("sd15", 512), ("sdxl", 512), ("sdxl", 1024)):
            architecture, name = ARCHITECTURES[model], f"{model} UNet @{side}"
            unet, condition = architecture.make_unet(), architecture.empty_condition(1)
            z, t = torch.empty(1, 4, side // 8, side // 8), torch.empty(1)

            def call(unet=unet, z=z, t=t, condition=condition):
                return unet(z, t, **condition).sample

            forward(name, call)
            both(name, call)
        for side in (*resolutions, 224):
            z = torch.empty(1, 4, side // 8, side // 8, requires_grad=True)
            forward(f"VAE decode {side}", lambda z=z: decode_latents(vae, z))
            both(f"VAE decode {side}", lambda z=z: decode_latents(vae, z))
        for side in resolutions:
            forward(f"VAE encode {side}", lambda side=side: encode_posterior(vae, torch.empty(1, 3, side, side)).mean)
        z = torch.empty(1, 4, 64, 64, requires_grad=True)
        forward("TAESD decode 512", lambda: decode_latents(tiny, z))
        both("TAESD decode 512", lambda: decode_latents(tiny, z))
        for name, config in (("DINOv2-S", DINOV2_S), ("DINOv2-L", DINOV2_L)):
            network = make_dinov2(config).requires_grad_(False)
            for side in (224, 518):
                x = torch.empty(1, 3, side, side, requires_grad=True)
                forward(f"{name} {side}", lambda network=network, x=x: network(x).last_hidden_state)
                if name == "DINOv2-S":
                    both(f"{name} {side}", lambda network=network, x=x: network(x).last_hidden_state)
    return found

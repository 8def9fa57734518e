"""How the frozen teacher is called: in its own precision, or as the student's base without the adapter."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from distillation.student import Condition
from training.models.lora import without_adapter
from training.models.networks import Networks


def teacher_call(networks: Networks) -> Callable:
    """The teacher's UNet as `(x_t, timestep=t, **condition)`. Gradients can flow through it to `x_t`."""
    unet = networks.teacher
    return without_adapter(unet) if unet is networks.student else _in_own_precision(unet)


def _in_own_precision(unet: Any) -> Callable:
    """`unet` as a callable that computes in the precision of its weights, whatever the run's is."""

    def cast(condition: Condition) -> Condition:
        return {k: cast(v) if isinstance(v, Mapping) else v.to(unet.dtype) for k, v in condition.items()}

    def call(x_t: torch.Tensor, timestep: torch.Tensor, **condition):
        with torch.autocast(x_t.device.type, enabled=False):
            return unet(x_t.to(unet.dtype), timestep=timestep, **cast(condition))

    return call

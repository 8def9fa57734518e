"""The two players of a run, student and discriminator, with all that trains them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import nn

from discriminator import Discriminator
from distillation.losses import Losses
from distillation.schedule import NoiseSchedule
from training.models.networks import Networks, make_losses
from training.optimization import Updater, discriminator_optimizer, learning_rate_schedule, student_optimizer
from training.options import Options
from training.options.derived import effective_batch_size


@dataclass
class Players:
    """Student and discriminator, which train against each other.

    Attributes:
        student: the UNet, unwrapped; all of it is trainable, or an adapter in it.
        heads: the discriminator's trainable heads, unwrapped; None without a discriminator.
        losses: the losses of both, which call the networks as they were prepared for distribution.
        updaters: by name, "student" and, with a discriminator, "discriminator".
        ema: the moving average of the student's trainable parameters, or None.
        accelerator: runs the backward passes.
    """

    student: UNet2DConditionModel
    heads: nn.Module | None
    losses: Losses
    updaters: dict[str, Updater]
    ema: EMAModel | None
    accelerator: Accelerator

    def trainable(self) -> dict[str, nn.Parameter]:
        """The student's trainable parameters by name: all of them, or the adapter's."""
        return {name: p for name, p in self.student.named_parameters() if p.requires_grad}


def make_players(
    options: Options,
    accelerator: Accelerator,
    networks: Networks,
    discriminator: Discriminator | None,
    schedules: tuple[NoiseSchedule, NoiseSchedule],
    total_steps: int,
) -> Players:
    """Optimizers, moving average and losses around loaded networks.

    Args:
        schedules: student's and teacher's.
        total_steps: iterations of the run, for the learning rates' schedules.
    """
    trainable = [p for p in networks.student.parameters() if p.requires_grad]
    scale = effective_batch_size(options, accelerator.num_processes) if options.optimization.scale_lr else 1

    def updater(optimizer: torch.optim.Optimizer) -> Updater:
        schedule = learning_rate_schedule(optimizer, options.optimization, total_steps)
        prepared = accelerator.prepare(optimizer)
        return Updater(accelerator, prepared, schedule, options.optimization.max_grad_norm)

    updaters = {"student": updater(student_optimizer(trainable, options, scale))}
    if discriminator is not None:
        updaters["discriminator"] = updater(discriminator_optimizer(discriminator.heads.parameters(), options, scale))
    ema = make_ema(trainable, options.optimization.ema_decay) if options.optimization.use_ema else None
    # DistributedDataParallel refuses to wrap a network after its optimizer has taken a step, and torch.compile after
    # either; so they are wrapped last, here.
    student = accelerator.prepare_model(networks.student)
    losses = make_losses(options, networks, student, discriminator, schedules, accelerator)
    heads = None if discriminator is None else discriminator.heads
    return Players(networks.student, heads, losses, updaters, ema, accelerator)


def make_ema(parameters: Iterable[nn.Parameter], decay: float) -> EMAModel:
    """The exponential moving average of `parameters`."""
    return EMAModel(parameters, decay=decay, foreach=True)

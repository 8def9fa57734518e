"""Student and discriminator with their losses, optimizers and moving average."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import nn

from discriminator import Discriminator, LatentDiscriminator
from distillation.losses import Losses
from distillation.schedule import NoiseSchedule
from training.models.losses import make_losses
from training.models.networks import Networks
from training.optimization import Updater, discriminator_optimizer, learning_rate_schedule, student_optimizer
from training.options import Options
from training.options.derived import effective_batch_size
from training.sharding.networks import shard_unet
from training.sharding.plan import plan_sharding

logger = logging.getLogger(__name__)


@dataclass
class Players:
    """The two networks that train against each other: student and discriminator.

    Attributes:
        student: the student's UNet, unwrapped; either all of it or an adapter in it is trainable.
        heads: the discriminator's trainable heads, unwrapped; None without a discriminator.
        losses: the losses of both networks; they call the networks as wrapped by accelerate.
        updaters: updaters with the keys "student" and, with a discriminator, "discriminator".
        ema: moving average of the student's trainable parameters, or None.
        accelerator: accelerator that runs the backward passes.
        discriminator_steps: number of updates of the heads per update of the student.
    """

    student: UNet2DConditionModel
    heads: nn.Module | None
    losses: Losses
    updaters: dict[str, Updater]
    ema: EMAModel | None
    accelerator: Accelerator
    discriminator_steps: int = 1

    def trainable(self) -> dict[str, nn.Parameter]:
        """The student's trainable parameters by name: all parameters, or only those of the adapter."""
        return {name: p for name, p in self.student.named_parameters() if p.requires_grad}


def make_players(
    options: Options,
    accelerator: Accelerator,
    networks: Networks,
    discriminator: Discriminator | LatentDiscriminator | None,
    schedules: tuple[NoiseSchedule, NoiseSchedule],
    total_steps: int,
) -> Players:
    """Make the optimizers, the moving average and the losses for loaded networks.

    Args:
        schedules: noise schedules of student and teacher.
        total_steps: number of iterations of the run, for the learning rate schedules.
    """
    sharding = plan_sharding(accelerator)
    if sharding is not None:  # before anything refers to the parameters, which are replaced by their shards
        logger.info("Sharding: %s", sharding.describe())
        for unet in {networks.student, networks.teacher} - {None}:
            shard_unet(unet, sharding, trains=unet is networks.student)
    trainable = [p for p in networks.student.parameters() if p.requires_grad]
    scale = effective_batch_size(options, accelerator.num_processes) if options.optimization.scale_lr else 1

    def updater(optimizer: torch.optim.Optimizer, updates: int = 1) -> Updater:
        schedule = learning_rate_schedule(optimizer, options.optimization, total_steps, updates)
        prepared = accelerator.prepare(optimizer)
        return Updater(accelerator, prepared, schedule, options.optimization.max_grad_norm)

    updaters = {"student": updater(student_optimizer(trainable, options, scale))}
    if discriminator is not None:
        heads_optimizer = discriminator_optimizer(discriminator.heads.parameters(), options, scale)
        updaters["discriminator"] = updater(heads_optimizer, options.discriminator.discriminator_steps)
    ema = make_ema(trainable, options.optimization.ema_decay) if options.optimization.use_ema else None
    # Networks are wrapped last. DistributedDataParallel refuses to wrap a network after its optimizer has taken a step,
    # and torch.compile has to come before both.
    student = networks.student if sharding is not None else accelerator.prepare_model(networks.student)
    losses = make_losses(options, networks, student, discriminator, schedules, accelerator)
    heads = None if discriminator is None else discriminator.heads
    return Players(
        networks.student, heads, losses, updaters, ema, accelerator, options.discriminator.discriminator_steps
    )


def make_ema(parameters: Iterable[nn.Parameter], decay: float) -> EMAModel:
    """The exponential moving average of `parameters`."""
    return EMAModel(parameters, decay=decay, foreach=True)

"""Optimizers, learning rate schedules, and updates that clip gradients and skip non-finite steps."""

from collections.abc import Iterable
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from training.errors import UserError
from training.options.derived import learning_rate
from training.options.optimization import OptimizationOptions
from training.options.options import Options
from training.sharding.tensors import local_part, total_norm

CHECK_SCALE_EVERY = 10  # updates of one network; each check waits for the device
SMALLEST_SCALE = 1.0  # with a smaller scale, fp16 gradients would be smaller than without a scaler
# torch's scaler starts at 2**16, so a search that reaches a scale of 1 takes at most 16 overflows.
MAX_OVERFLOWS_IN_A_ROW = 20


def student_optimizer(parameters: Iterable[nn.Parameter], options: Options, scale: float) -> Optimizer:
    """The student's AdamW optimizer, 8-bit with `--use_8bit_adam`. `scale` multiplies the learning rate."""
    own = options.optimization
    settings = {
        "lr": learning_rate(options) * scale,
        "betas": (own.adam_beta1, own.adam_beta2),
        "weight_decay": own.adam_weight_decay,
        "eps": own.adam_epsilon,
    }
    if own.use_8bit_adam:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, fused=True, **settings)


def discriminator_optimizer(parameters: Iterable[nn.Parameter], options: Options, scale: float) -> Optimizer:
    """The heads' Adam optimizer (StyleGAN-T), as AdamW without weight decay. `scale` multiplies the learning rate."""
    own = options.discriminator
    return torch.optim.AdamW(
        parameters,
        lr=own.discriminator_learning_rate * scale,
        betas=(own.discriminator_adam_beta1, own.discriminator_adam_beta2),
        weight_decay=0.0,
        eps=options.optimization.adam_epsilon,
        fused=True,
    )


def learning_rate_schedule(
    optimizer: Optimizer, own: OptimizationOptions, total_steps: int, updates: int = 1
) -> LRScheduler:
    """One of diffusers' schedules, counted in iterations. Never `prepare`d: accelerate would step it once a process.

    Args:
        updates: of the network in an iteration. The schedule moves with each of them.
    """
    return get_scheduler(
        own.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=own.lr_warmup_steps * updates,
        num_training_steps=total_steps * updates,
        num_cycles=own.lr_num_cycles,
        power=own.lr_power,
    )


class GradientScaleError(UserError, RuntimeError):
    """fp16 gradients are not finite at any usable gradient scale."""


class Updater:
    """Updates one network from its gradients, and skips the update if they are not finite.

    The decision is made on the device: a fused optimizer reads it from `found_inf`, so the host does not have to wait.

    In fp16 one `GradScaler` is used for both networks in turn: backward, unscale, step and the update of the scale for
    one network come before the backward pass of the other, so an overflow lowers the scale of the next backward pass. A
    step is only taken if the norm of the UNSCALED gradients is finite. The scaler's own check is not enough, because it
    checks the gradients before dividing them by the scale, which gives NaN at a scale of 0.

    Attributes:
        figures: device scalars of the last update for the trackers: `clipped` is 1.0 if the norm exceeded
            `max_grad_norm`, so that its mean is a fraction of the iterations; in fp16 also `overflowed`, 1.0 if the
            scaler skipped the step, and `scale`.
    """

    def __init__(self, accelerator: Accelerator, optimizer: AcceleratedOptimizer, schedule, max_grad_norm: float):
        self.accelerator, self.optimizer, self.schedule = accelerator, optimizer, schedule
        self.max_grad_norm = max_grad_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.figures: dict[str, Tensor] = {}
        self.updates = 0
        self.overflows_in_a_row: Tensor | float = 0.0
        self.longest_overflow: Tensor | float = 0.0

    def update(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Clip the gradients, step the optimizer and the learning rate schedule, and clear the gradients.

        Args:
            loss: scalar loss of this process. If it is not finite in any process, all processes skip the step, even if
                the gradients are finite.

        Returns:
            Two device scalars: the norm of the gradients before clipping, and 1.0 if the step was skipped because of an
            error, else 0.0. In fp16, infinite gradients are expected while the scaler searches for a scale: they skip
            the step and are counted in `figures`, and only a non-finite loss counts as an error.

        Raises:
            GradientScaleError: fp16 finds no usable scale; checked every `CHECK_SCALE_EVERY` updates.
        """
        # 0 for a finite loss, else NaN. It is reduced over all processes and added to one gradient, so that a NaN
        # reaches the norm and the fp16 scaler in every process.
        poison = cast(Tensor, self.accelerator.reduce(loss.detach(), "mean")) * 0
        gradient = local_part(next(p.grad for p in self.parameters if p.grad is not None))
        gradient.view(-1)[:1].add_(poison.to(gradient))  # of a sharded gradient a process may hold nothing
        self.accelerator.unscale_gradients(self.optimizer)
        norm = total_norm(p.grad for p in self.parameters if p.grad is not None)
        nn.utils.clip_grads_with_norm_(self.parameters, self.max_grad_norm, norm)
        norm = norm.to(loss.device)  # of offloaded gradients it is on the CPU
        skipped = (~torch.isfinite(norm)).float()
        self._guarded_step(skipped)
        self.figures = {"clipped": (norm > self.max_grad_norm).float()}
        scaler = self.accelerator.scaler
        if scaler is not None:
            is_fault = (~torch.isfinite(poison)).float()
            self._update_scale(scaler, skipped * (1 - is_fault))
            skipped = is_fault
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, skipped

    def _guarded_step(self, skipped: Tensor) -> None:
        # `AcceleratedOptimizer.step` would leave the decision to the scaler.
        optimizer = self.optimizer.optimizer
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.grad_scale, optimizer.found_inf = None, skipped
            optimizer.step()
        elif not skipped.item():  # 8-bit Adam has no `found_inf`, so the host has to wait for the device here
            optimizer.step()

    def _update_scale(self, scaler: torch.amp.GradScaler, overflowed: Tensor) -> None:
        scaler.update()
        self.overflows_in_a_row = (self.overflows_in_a_row + overflowed) * overflowed
        self.longest_overflow = torch.maximum(
            self.overflows_in_a_row, torch.as_tensor(self.longest_overflow, device=overflowed.device)
        )
        scale = cast(Tensor, scaler._scale)  # None only before the first loss was scaled
        self.figures |= {"overflowed": overflowed, "scale": scale.detach().clone()}
        self.updates += 1
        if self.updates % CHECK_SCALE_EVERY == 0:
            self._check_scale(scaler.get_scale(), int(self.longest_overflow))

    def _check_scale(self, scale: float, overflows: int) -> None:
        """Raise a GradientScaleError if the scale is below `SMALLEST_SCALE` or too many updates in a row overflowed."""
        self.longest_overflow = 0.0
        if scale < SMALLEST_SCALE or overflows > MAX_OVERFLOWS_IN_A_ROW:
            raise GradientScaleError(
                f"--mixed_precision fp16: the gradients were NaN or infinite in up to {overflows} updates in a row, "
                f"and the gradient scale has fallen to {scale:g}; these updates did not change any weights. Use "
                "--mixed_precision bf16 or no, or lower --learning_rate and --discriminator_learning_rate, and resume "
                "from the last checkpoint"
            )

"""One network's side of the two-player game: optimizer, learning rate, clip, and the guard against non-finite steps."""

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

CHECK_SCALE_EVERY = 10  # updates of one network; each check waits for the device
SMALLEST_SCALE = 1.0  # below it fp16's gradients are smaller than without a scaler
# torch's scaler starts at 2**16, so a search that succeeds takes at most 16 overflows.
MAX_OVERFLOWS_IN_A_ROW = 20


def student_optimizer(parameters: Iterable[nn.Parameter], options: Options, scale: float) -> Optimizer:
    """AdamW with the student's flags, or bitsandbytes' 8-bit one. `scale` multiplies the learning rate."""
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
    """Adam without weight decay (StyleGAN-T), which is what AdamW with decay 0 computes."""
    own = options.discriminator
    return torch.optim.AdamW(
        parameters,
        lr=own.discriminator_learning_rate * scale,
        betas=(own.discriminator_adam_beta1, own.discriminator_adam_beta2),
        weight_decay=0.0,
        eps=options.optimization.adam_epsilon,
        fused=True,
    )


def learning_rate_schedule(optimizer: Optimizer, own: OptimizationOptions, total_steps: int) -> LRScheduler:
    """One of diffusers' schedules, counted in iterations. Never `prepare`d: accelerate would step it once a process."""
    return get_scheduler(
        own.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=own.lr_warmup_steps,
        num_training_steps=total_steps,
        num_cycles=own.lr_num_cycles,
        power=own.lr_power,
    )


class GradientScaleError(UserError, RuntimeError):
    """fp16's gradients overflow at every scale that is worth using."""


class Updater:
    """Turns the gradients of one network into one update, or into none where they are not finite.

    The decision stays on the device: a fused optimizer reads `found_inf` there, so a healthy run never waits for it.

    In fp16 one `GradScaler` serves both networks, strictly in sequence: backward, unscale, step and the scale's own
    update of one network come before the backward of the other, so every overflow lowers the scale that the next
    backward uses. A step is taken only where the norm of the UNSCALED gradients is finite. The scaler's own check is
    not enough: it looks at the gradients before it divides them by the scale, which at a scale of 0 gives NaN.

    Attributes:
        figures: of the last update, device scalars for the trackers: `clipped`, 1.0 where the norm exceeded
            `max_grad_norm`, so that its mean is a share of the iterations; in fp16 also `overflowed`, 1.0 where the
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
        """Clip, step, move the learning rate, and clear the gradients.

        Args:
            loss: scalar, this process's; a non-finite value at any process skips the step at all of them, even where
                the gradients came out finite.

        Returns:
            Norm of the gradients before clipping, and 1.0 where the step was skipped through a fault of the run, else
            0.0. Device scalars. In fp16 infinite gradients are expected while the scaler searches for a scale: they
            skip the step and are counted in `figures`, and only a non-finite loss is a fault.

        Raises:
            GradientScaleError: fp16 finds no scale. Checked every `CHECK_SCALE_EVERY` updates.
        """
        # 0 for a finite loss and NaN for any other: added to one gradient it reaches the norm, fp16's scaler, and,
        # being reduced first, every process.
        poison = cast(Tensor, self.accelerator.reduce(loss.detach(), "mean")) * 0
        with_gradient = next(p for p in self.parameters if p.grad is not None)
        with_gradient.grad.view(-1)[:1].add_(poison.to(with_gradient.grad.dtype))
        self.accelerator.unscale_gradients(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
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
        # accelerate's own step would hand the decision to the scaler.
        optimizer = self.optimizer.optimizer
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.grad_scale, optimizer.found_inf = None, skipped
            optimizer.step()
        elif not skipped.item():  # 8-bit Adam has no such input: this is the one place that waits for the device
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
        """Raises: GradientScaleError: the scale is below `SMALLEST_SCALE`, or too many overflows came in a row."""
        self.longest_overflow = 0.0
        if scale < SMALLEST_SCALE or overflows > MAX_OVERFLOWS_IN_A_ROW:
            raise GradientScaleError(
                f"--mixed_precision fp16: the gradients were NaN or infinite in up to {overflows} updates in a row, "
                f"and the gradient scale is down to {scale:g}; no weight was changed by them. Use --mixed_precision "
                "bf16 or no, or lower --learning_rate and --discriminator_learning_rate, and resume from the last "
                "checkpoint"
            )

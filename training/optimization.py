"""One network's side of the two-player game: optimizer, learning rate, clip, and the guard against non-finite steps."""

import argparse
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.optimization import get_scheduler
from torch import Tensor, nn


def student_optimizer(parameters: Iterable[nn.Parameter], args: argparse.Namespace, scale: float):
    """AdamW with the student's flags; bitsandbytes' 8-bit one on request. `scale` multiplies the learning rate."""
    options = {
        "lr": args.learning_rate * scale,
        "betas": (args.adam_beta1, args.adam_beta2),
        "weight_decay": args.adam_weight_decay,
        "eps": args.adam_epsilon,
    }
    if args.use_8bit_adam:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, **options)
    return torch.optim.AdamW(parameters, fused=True, **options)


def discriminator_optimizer(parameters: Iterable[nn.Parameter], args: argparse.Namespace, scale: float):
    """Adam without weight decay (StyleGAN-T), which is what AdamW with decay 0 computes."""
    return torch.optim.AdamW(
        parameters,
        lr=args.discriminator_learning_rate * scale,
        betas=(args.discriminator_adam_beta1, args.discriminator_adam_beta2),
        weight_decay=0.0,
        eps=args.adam_epsilon,
        fused=True,
    )


def learning_rate_schedule(optimizer: torch.optim.Optimizer, args: argparse.Namespace, total_steps: int):
    """One of diffusers' schedules, counted in iterations. Never `prepare`d: accelerate would step it once a process."""
    return get_scheduler(
        args.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=total_steps,
        num_cycles=args.lr_num_cycles,
        power=args.lr_power,
    )


class Updater:
    """Turns the gradients of one network into one update, or into none where they are not finite.

    The decision stays on the device: a fused optimizer reads `found_inf` there, so a healthy run never waits for it.
    """

    def __init__(self, accelerator: Accelerator, optimizer: AcceleratedOptimizer, schedule, max_grad_norm: float):
        self.accelerator, self.optimizer, self.schedule = accelerator, optimizer, schedule
        self.max_grad_norm = max_grad_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def update(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Clip, step, move the learning rate, and clear the gradients.

        Args:
            loss: scalar, this process's; a non-finite value at any process skips the step at all of them, even where
                the gradients came out finite.

        Returns:
            Norm of the gradients before clipping, and 1.0 where the step was skipped, else 0.0. Device scalars.
        """
        # 0 for a finite loss and NaN for any other: added to one gradient it reaches the norm, fp16's scaler, and,
        # being reduced first, every process.
        poison = self.accelerator.reduce(loss.detach(), "mean") * 0
        with_gradient = next(p for p in self.parameters if p.grad is not None)
        with_gradient.grad.view(-1)[:1].add_(poison.to(with_gradient.grad.dtype))
        self.accelerator.unscale_gradients(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        if self.accelerator.scaler is not None:
            # The scaler skips by itself. An infinite gradient is how it looks for its scale, no fault of the run; a
            # non-finite loss is one.
            skipped = (~torch.isfinite(poison)).float()
            self.optimizer.step()
        else:
            skipped = (~torch.isfinite(norm)).float()
            self._guarded_step(skipped)
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, skipped

    def _guarded_step(self, skipped: Tensor) -> None:
        optimizer = self.optimizer.optimizer
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.grad_scale, optimizer.found_inf = None, skipped
            self.optimizer.step()
        elif not skipped.item():  # 8-bit Adam has no such input: this is the one place that waits for the device
            self.optimizer.step()

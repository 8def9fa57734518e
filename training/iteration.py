"""One iteration: the discriminator's step, then the student's. The losses are computed in `distillation/losses.py`."""

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distillation.losses import Batch, Losses
from training.optimization import Updater


def backward(accelerator: Accelerator, network: nn.Module, loss: Tensor, is_last: bool) -> None:
    """Add to the gradients; ranks exchange them with the last micro-batch of an iteration only."""
    with nullcontext() if is_last else accelerator.no_sync(network):
        accelerator.backward(loss)


def train_iteration(
    losses: Losses, micro_batches: list[Batch], updaters: dict[str, Updater], accelerator: Accelerator
) -> tuple[dict[str, Tensor], Tensor]:
    """One iteration on its `micro_batches`: first the discriminator's step, then the student's.

    With one micro-batch the student's sample is computed once and shared. With several, keeping their graphs until the
    discriminator has moved would cost the memory that accumulation is there to save, so each is computed again: the
    noise is part of the batch, so it is the same sample.

    Returns:
        Mean scalars over the micro-batches, and 1.0 where either network's step was skipped.
    """
    n, skips, values = len(micro_batches), [], {}
    shared = losses.sample(micro_batches[0]) if n == 1 else None
    phases = [] if losses.discriminator is None else [("discriminator", losses.heads, losses.discriminator_losses)]
    for name, network, losses_of in [*phases, ("student", losses.student, losses.student_losses)]:
        total = 0.0
        for i, batch in enumerate(micro_batches):
            with torch.set_grad_enabled(name == "student"):
                sample = shared or losses.sample(batch)
            scalars = losses_of(batch, sample)
            loss = scalars.pop("total") / n
            backward(accelerator, network, loss, is_last=i == n - 1)
            total = total + loss.detach()
            for key, value in scalars.items():
                values[key] = values.get(key, 0.0) + value.detach() / n
        values[f"gradient_norm/{name}"], skipped = updaters[name].update(total)
        skips.append(skipped)
    return values, torch.stack(skips).amax()

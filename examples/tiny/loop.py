"""The one training loop that all stages share."""

from collections.abc import Callable, Iterable

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm import tqdm

WARMUP = 0.05  # of all iterations
DISPLAY_EVERY = 20  # iterations; reading the loss more often costs more than it shows


def fit(
    modules: Iterable[nn.Module],
    loss_of_batch: Callable[[], torch.Tensor],
    *,
    iterations: int,
    learning_rate: float,
    title: str,
    ema_decay: float | None = None,
) -> None:
    """Minimize `loss_of_batch()` over the parameters of `modules` with Adam: linear warm-up, then a cosine to zero.

    The number of iterations alone decides when to stop, so a seed gives the same weights on a busy machine.
    With `ema_decay` the weights left in `modules` are their exponential moving average.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    modules = list(modules)
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, round(WARMUP * iterations)), iterations + 1)
    ema = None if ema_decay is None else EMAModel(parameters, decay=ema_decay)
    for module in modules:
        module.train()
    with tqdm(total=iterations, desc=title, unit="it") as bar:
        for i in range(iterations):
            loss = loss_of_batch()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if ema is not None:
                ema.step(parameters)
            if i % DISPLAY_EVERY == 0 or i == iterations - 1:
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"{title}: the loss is {loss.item()} at iteration {i}")
                bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            bar.update()
    if ema is not None:
        ema.copy_to(parameters)
    for module in modules:
        module.eval()


def draw(count: int, batch_size: int) -> torch.Tensor:
    """`batch_size` indices below `count`, uniform and independent."""
    return torch.randint(count, (batch_size,))

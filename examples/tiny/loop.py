"""The one training loop that all stages share, and how it is continued after it was killed."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm import tqdm

WARMUP = 0.05  # of all iterations
DISPLAY_EVERY = 20  # iterations; reading the loss more often costs more than it shows


@dataclass(frozen=True)
class Checkpoint:
    """A file in which a training keeps its state, replaced in one step.

    Attributes:
        path: the file; it need not exist.
        key: what is trained, from what. A file of another key is not continued.
        seconds: how often it is written.
    """

    path: Path
    key: str
    seconds: float = 60.0

    def load(self) -> dict | None:
        """The state last saved under this key, or None."""
        if not self.path.exists():
            return None
        state = torch.load(self.path, weights_only=True)
        return state if state["key"] == self.key else None

    def save(self, state: dict) -> None:
        """Replace the file by `state`, which holds tensors, numbers, strings, lists and dicts only."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save({"key": self.key, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)


def fit(
    modules: Iterable[nn.Module],
    loss_of_batch: Callable[[], torch.Tensor],
    *,
    iterations: int,
    learning_rate: float,
    title: str,
    ema_decay: float | None = None,
    checkpoint: Checkpoint | None = None,
    part: int = 0,
) -> None:
    """Minimize `loss_of_batch()` over the parameters of `modules` with Adam: linear warm-up, then a cosine to zero.

    The number of iterations alone decides when to stop, so a seed gives the same weights on a busy machine.
    With `ema_decay` the weights left in `modules` are their exponential moving average.

    Args:
        checkpoint: where the state is saved from time to time and at the end. A state found there is continued, and
            the result is that of a run that was never interrupted.
        part: number of this training among several of the same networks; only a state of this part is continued.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    modules = list(modules)
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, round(WARMUP * iterations)), iterations + 1)
    ema = None if ema_decay is None else EMAModel(parameters, decay=ema_decay)

    def state(done: int) -> dict:
        return {
            "part": part,
            "done": done,
            "modules": [module.state_dict() for module in modules],
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "ema": None if ema is None else [ema.optimization_step, ema.shadow_params],
            "random": torch.get_rng_state(),
        }

    def restore(found: dict) -> int:
        for module, values in zip(modules, found["modules"]):
            module.load_state_dict(values)
        optimizer.load_state_dict(found["optimizer"])
        schedule.load_state_dict(found["schedule"])
        if ema is not None:
            ema.optimization_step, ema.shadow_params = found["ema"]
        torch.set_rng_state(found["random"])
        return found["done"]

    found = checkpoint.load() if checkpoint else None
    start = restore(found) if found and found["part"] == part else 0
    for module in modules:
        module.train()
    saved = time.monotonic()
    with tqdm(total=iterations, initial=start, desc=title, unit="it") as bar:
        for i in range(start, iterations):
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
            if checkpoint and i + 1 < iterations and time.monotonic() - saved > checkpoint.seconds:
                checkpoint.save(state(i + 1))
                saved = time.monotonic()
    if ema is not None:
        ema.copy_to(parameters)
    if checkpoint and start < iterations:
        checkpoint.save(state(iterations))
    for module in modules:
        module.eval()


def draw(count: int, batch_size: int) -> torch.Tensor:
    """`batch_size` indices below `count`, uniform and independent."""
    return torch.randint(count, (batch_size,))

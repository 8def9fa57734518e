"""The student as it is published: one whole network with averaged weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from training.models.lora import add_lora
from training.monitoring.validation import averaged
from training.run.run import Run
from training.sharding.networks import is_sharded
from training.sharding.tensors import gather


@contextmanager
def whole_student(run: Run) -> Iterator[nn.Module | None]:
    """The student with averaged weights at the main process, None elsewhere. To be reached by every process.

    A sharded student is gathered, weight by weight, into the main process's main memory: what is trainable in it, once.
    """
    players, is_main = run.players, run.accelerator.is_main_process
    if is_sharded(players.student):
        trainable = players.trainable()
        weights = trainable.values() if players.ema is None else players.ema.shadow_params
        gathered = {name: gather(weight, is_main) for name, weight in zip(trainable, weights)}
        yield _assemble(run, gathered) if is_main else None
    elif is_main:
        with averaged(players.student, players.ema) as student:
            yield student
    else:
        yield None


def _assemble(run: Run, weights: Mapping[str, Tensor]) -> UNet2DConditionModel:
    """The student's architecture around `weights`. Of an adapter's base nothing is published; it has no contents."""
    lora = run.options.lora
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(run.players.student.config)
        if lora.use_lora:
            add_lora(unet, lora)
    unet.load_state_dict(weights, strict=not lora.use_lora, assign=True)
    return unet.eval()

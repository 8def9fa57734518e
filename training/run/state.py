"""The state of a run: its counters, and conversion of the whole state to and from a checkpoint."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from training.checkpoints.groups import Groups
from training.checkpoints.optimizer_state import copy_optimizer_tensors, describe_optimizer, load_optimizer_tensors
from training.checkpoints.store import Checkpoint
from training.run.players import Players
from training.sharding.tensors import copy_, gather


@dataclass
class RunState:
    """The counters of a run. All other state that changes is in `Players`.

    Attributes:
        seed: seed of the run.
        step: number of finished iterations.
        position: number of samples consumed from the stream, over all processes.
        skipped: number of iterations in which a step was skipped because of a non-finite loss or gradient.
        replaced: number of samples with an unreadable image or missing caption that were replaced, over all processes.
        enlarged: number of samples whose image was smaller than the resolution, over all processes.
        changed: fixed options that were changed with `--allow_changed`, as "--flag: before -> after".
    """

    seed: int
    step: int = 0
    position: int = 0
    skipped: int = 0
    replaced: int = 0
    enlarged: int = 0
    changed: list[str] = field(default_factory=list)

    def advance(self, samples: int) -> None:
        """Count one iteration that read `samples` over all processes.

        `training.monitoring.progress` adds up the counts of the processes every few iterations.
        """
        self.step += 1
        self.position += samples


def pack_run(
    players: Players, state: RunState, arguments: Mapping[str, Any], accelerator: Accelerator
) -> tuple[Groups, dict[str, Any]]:
    """Collect the state of a run as tensors in named groups and JSON values, the arguments of `save_checkpoint`.

    Random states are not needed, because every random number of an iteration is a function of the seed and of a
    sample's position in the stream.

    The groups of a sharded run are made by all processes together and are whole at the main one, in its main memory;
    elsewhere their tensors are empty.

    Args:
        arguments: flags and facts by name, from `training.run.resume.run_arguments`.
    """
    trainable = players.trainable()

    def whole(tensor: Tensor) -> Tensor:
        return gather(tensor, accelerator.is_main_process)

    def named(tensors: Iterable[Tensor]) -> Callable[[], dict[str, Tensor]]:
        return lambda: {name: whole(tensor.detach()) for name, tensor in zip(trainable, tensors)}

    def state_of(optimizer: torch.optim.Optimizer) -> Callable[[], dict[str, Tensor]]:
        return lambda: copy_optimizer_tensors(optimizer, whole)

    makers: dict[str, Callable[[], dict[str, Tensor]]] = {"student": named(trainable.values())}
    packed: dict[str, Any] = {**asdict(state), "arguments": dict(arguments)}
    packed["scaler"] = None if accelerator.scaler is None else accelerator.scaler.state_dict()
    if players.heads is not None:
        makers["discriminator"] = players.heads.state_dict
    for name, updater in players.updaters.items():
        makers[f"{name}_optimizer"] = state_of(updater.optimizer.optimizer)
        packed[f"{name}_optimizer"] = describe_optimizer(updater.optimizer.optimizer)
        packed[f"{name}_schedule"] = updater.schedule.state_dict()
    if players.ema is not None:
        makers["student_ema"] = named(players.ema.shadow_params)
        packed["ema_step"] = players.ema.optimization_step
    return Groups(makers), packed


def unpack_run(checkpoint: Checkpoint, players: Players, accelerator: Accelerator) -> RunState:
    """Load a verified checkpoint of a run with the same options into `players`, and return its counters."""
    tensors, saved = checkpoint.tensors, checkpoint.state
    for name, parameter in players.trainable().items():
        copy_(parameter, tensors["student"][name])
    if players.heads is not None:
        players.heads.load_state_dict(tensors["discriminator"])
    for name, updater in players.updaters.items():
        optimizer = updater.optimizer.optimizer
        load_optimizer_tensors(optimizer, tensors[f"{name}_optimizer"], saved[f"{name}_optimizer"])
        updater.schedule.load_state_dict(saved[f"{name}_schedule"])
    if players.ema is not None:
        for name, shadow in zip(players.trainable(), players.ema.shadow_params):
            copy_(shadow, tensors["student_ema"][name])
        players.ema.optimization_step = saved["ema_step"]
    if accelerator.scaler is not None and saved["scaler"] is not None:
        accelerator.scaler.load_state_dict(saved["scaler"])
    names = ("seed", "step", "position", "skipped", "replaced")
    return RunState(
        **{name: saved[name] for name in names},
        enlarged=saved.get("enlarged", 0),  # checkpoints of earlier versions did not count them
        changed=list(saved.get("changed", ())),
    )

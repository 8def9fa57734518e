"""Saving of checkpoints, and the configuration that is passed to trackers."""

from collections.abc import Mapping
from typing import Any

from training.checkpoints.store import save_checkpoint
from training.processes.main_process import on_main_process
from training.run.run import Run
from training.run.state import pack_run
from training.sharding.networks import is_sharded


def save(run: Run) -> None:
    """Write `checkpoint-N` of this iteration, then remove surplus checkpoints. All processes must call this function.

    Raises:
        CheckpointError: the checkpoint cannot be written; raised in every process.
    """
    output = run.options.output

    tensors, state = pack_run(run.players, run.state, run.arguments, run.accelerator)

    def write() -> None:
        try:
            save_checkpoint(output.output_dir, run.state.step, tensors, state, output.checkpoints_total_limit)
        finally:
            make_rest()  # after an error the other processes still wait with their shards

    def make_rest() -> None:
        if is_sharded(run.players.student):
            tensors.make_rest()

    on_main_process(run.accelerator, write, elsewhere=make_rest)


def tracker_config(arguments: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Flags and facts in the types that trackers accept: numbers and strings."""
    return {name: value if isinstance(value, int | float | str) else str(value) for name, value in arguments.items()}

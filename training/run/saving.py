"""Saving of checkpoints, and the configuration that is passed to trackers."""

from collections.abc import Mapping
from typing import Any

from training.checkpoints.store import save_checkpoint
from training.processes.main_process import on_main_process
from training.run.run import Run
from training.run.state import pack_run


def save(run: Run) -> None:
    """Write `checkpoint-N` of this iteration, then remove surplus checkpoints. All processes must call this function.

    Raises:
        CheckpointError: the checkpoint cannot be written; raised in every process.
    """
    output = run.options.output

    def write() -> None:
        tensors, state = pack_run(run.players, run.state, run.arguments, run.accelerator)
        save_checkpoint(output.output_dir, run.state.step, tensors, state, output.checkpoints_total_limit)

    on_main_process(run.accelerator, write)


def tracker_config(arguments: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Flags and facts in the types that trackers accept: numbers and strings."""
    return {name: value if isinstance(value, int | float | str) else str(value) for name, value in arguments.items()}

"""Several runs of `train_add.py` one after the other in the same processes, since to start processes takes longest.

    accelerate launch ... tests/scripts/several_runs.py runs.json folder

`runs.json` holds a list of `{"name": ..., "environment": {...}, "flags": [...]}`. Every process writes what it held and
exchanged during the last iteration of each run to `folder/NAME-RANK.json`.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import patch_environment

import train_add
from training.processes.accelerator import end_training
from training.sharding.tensors import local_bytes

# Names in torch 2.13 and before.
COLLECTIVES = {
    "all_gather_single": "gathered",
    "all_gather_into_tensor": "gathered",
    "reduce_scatter_single": "reduced",
    "reduce_scatter_tensor": "reduced",
    "all_reduce": "all_reduced",
}


def count_exchanges(exchanged: dict[str, int]) -> None:
    """From now on, add up the bytes of the larger side of every collective that Python calls, by its kind."""
    for name in COLLECTIVES.keys() & vars(torch.distributed).keys():
        original = getattr(torch.distributed, name)

        def counting(*args, kind=COLLECTIVES[name], original=original, **kwargs):
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
            if tensors[0].numel() > 1:  # not of a loss
                exchanged[kind] += max(tensor.numel() * tensor.element_size() for tensor in tensors)
            return original(*args, **kwargs)

        setattr(torch.distributed, name, counting)


def held(players) -> dict[str, int]:
    """Bytes that this process holds between two iterations."""
    state = players.updaters["student"].optimizer.optimizer.state
    moments = [tensor for values in state.values() for name, tensor in values.items() if name != "step"]
    return {
        "student": local_bytes(players.student.parameters()),
        "optimizer": local_bytes(moments),
        "ema": local_bytes(() if players.ema is None else players.ema.shadow_params),
    }


def main() -> None:
    """Run them all."""
    runs, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    exchanged, figures, original = dict.fromkeys(COLLECTIVES.values(), 0), {}, train_add.iteration
    count_exchanges(exchanged)

    def iteration(players, *args):
        exchanged.update(dict.fromkeys(exchanged, 0))
        outcome = original(players, *args)
        figures.update(exchanged, **held(players))
        return outcome

    train_add.iteration = iteration
    train_add.end_training = lambda accelerator: None  # the process group is for the next run, too
    for run in runs:
        AcceleratorState._reset_state(reset_partial_state=True)
        with patch_environment(**run["environment"]):
            train_add.main(run["flags"])
        (folder / f"{run['name']}-{os.environ['RANK']}.json").write_text(json.dumps(figures))
    end_training(Accelerator())


if __name__ == "__main__":
    main()

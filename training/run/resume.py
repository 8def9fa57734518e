"""Start of a new or resumed run: its checkpoint, its seed, and the properties that a resumed run must match."""

import random
from typing import Any

import torch
from accelerate import Accelerator

from training.checkpoints.manifest import MANIFEST, file_sha256
from training.checkpoints.store import Checkpoint, find_checkpoint, load_checkpoint
from training.data.fingerprint import dataset_fingerprint
from training.data.sources import Rows
from training.encoding.fingerprint import model_fingerprint
from training.models.families import Family
from training.options import Options
from training.options.derived import effective_batch_size
from training.processes.agreement import agree


def checkpoint_to_resume(options: Options, accelerator: Accelerator) -> Checkpoint | None:
    """Load and verify the checkpoint of `--resume_from_checkpoint`, the same in every process; None for a new run.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        DisagreementError: the processes find different checkpoints.
    """
    output_dir, name = options.output.output_dir, options.output.resume_from_checkpoint

    def choose() -> tuple[str, str] | None:
        path = find_checkpoint(output_dir, name)
        return None if path is None else (str(path), file_sha256(path / MANIFEST))

    chosen = agree(accelerator, f"--resume_from_checkpoint {name}", choose)
    return None if chosen is None else load_checkpoint(chosen[0])


def choose_seed(options: Options, checkpoint: Checkpoint | None, accelerator: Accelerator) -> int:
    """`--seed` if given, else the seed of the checkpoint, else a new random seed, the same in every process."""
    if options.optimization.seed is not None:
        return options.optimization.seed
    if checkpoint is not None:
        return checkpoint.state["seed"]
    seed = torch.tensor(random.SystemRandom().randrange(2**31), device=accelerator.device)
    return int(accelerator.gather(seed.reshape(1))[0])


def run_arguments(
    options: Options, seed: int, accelerator: Accelerator, rows: Rows, student: Family, teacher: Family
) -> dict[str, Any]:
    """Flags and `FACTS` of a run by name, which checkpoints store and `training.options.resuming` compares.

    Raises:
        DisagreementError: the processes read different data or models.
    """

    def facts() -> dict[str, Any]:
        return {
            "data": dataset_fingerprint(rows),
            "teacher": family_fingerprint(teacher),
            "student": family_fingerprint(student),
        }

    agreed = agree(accelerator, "data and models", facts)
    return {
        **options.recorded(),
        **agreed,
        "seed": seed,
        "effective_batch_size": effective_batch_size(options, accelerator.num_processes),
        "processes": accelerator.num_processes,
    }


def family_fingerprint(family: Family) -> str:
    """Identity of the weights that a run takes from a repo: its UNet or transformer, and its autoencoder."""
    unet = model_fingerprint(family.name, family.network, family.where["revision"], family.where["cache_dir"])
    return f"{unet} {model_fingerprint(*family.vae_place())}"

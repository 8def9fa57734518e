"""The start of a run, new or resumed: its checkpoint, its seed, and the facts that a resumed run is compared by."""

import random
from typing import Any

import torch
from accelerate import Accelerator

from training.agreement import agree
from training.checkpoints.manifest import MANIFEST, file_sha256
from training.checkpoints.store import Checkpoint, find_checkpoint, load_checkpoint
from training.data.fingerprint import dataset_fingerprint
from training.data.sources import Rows
from training.encoding.fingerprint import model_fingerprint
from training.models.families import Family
from training.options import Options
from training.options.derived import effective_batch_size


def checkpoint_to_resume(options: Options, accelerator: Accelerator) -> Checkpoint | None:
    """The verified checkpoint that `--resume_from_checkpoint` names, the same one at every process; None for a new run.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        DisagreementError: the processes see different checkpoints.
    """
    output_dir, name = options.output.output_dir, options.output.resume_from_checkpoint

    def choose() -> tuple[str, str] | None:
        path = find_checkpoint(output_dir, name)
        return None if path is None else (str(path), file_sha256(path / MANIFEST))

    chosen = agree(accelerator, f"--resume_from_checkpoint {name}", choose)
    return None if chosen is None else load_checkpoint(chosen[0])


def choose_seed(options: Options, checkpoint: Checkpoint | None, accelerator: Accelerator) -> int:
    """`--seed`; without it the checkpoint's; without a checkpoint a new one, the same at every process."""
    if options.optimization.seed is not None:
        return options.optimization.seed
    if checkpoint is not None:
        return checkpoint.state["seed"]
    seed = torch.tensor(random.SystemRandom().randrange(2**31), device=accelerator.device)
    return int(accelerator.gather(seed.reshape(1))[0])


def run_arguments(
    options: Options, seed: int, accelerator: Accelerator, rows: Rows, student: Family, teacher: Family
) -> dict[str, Any]:
    """Flags and facts of a run by name, as `training.options.resuming` compares them and checkpoints keep them.

    Raises:
        DisagreementError: the processes see different data or models.
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

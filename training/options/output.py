"""Flags of what a run writes: checkpoints, the published model, logs and sample grids."""

from dataclasses import dataclass
from typing import ClassVar

from training.options.declaration import AT_LEAST_ONE, Resume, flag

FREE = Resume.FREE


@dataclass(frozen=True)
class OutputOptions:
    """What a run writes to disk and to trackers."""

    title: ClassVar[str] = "checkpoints and output"

    output_dir: str = flag(
        "add-model", "Folder for the published model, checkpoints and logs.", resume=FREE, private=True
    )
    export_single_file: str | None = flag(
        None,
        "Also write the student as one .safetensors file in the layout of the original checkpoints, which ComfyUI and "
        "other front ends load.",
        resume=FREE,
        private=True,
        metavar="FILE",
    )
    checkpointing_steps: int = flag(
        500, "Number of iterations between checkpoints. The last iteration is always saved.", resume=FREE,
        range=AT_LEAST_ONE,
    )  # fmt: skip
    checkpoints_total_limit: int | None = flag(
        None, "Number of checkpoints to keep. Older ones are removed.", resume=FREE, range=AT_LEAST_ONE
    )
    resume_from_checkpoint: str | None = flag(
        None, "`latest`, or the name or path of a checkpoint-N folder.", resume=FREE, private=True
    )
    allow_changed: tuple[str, ...] | None = flag(
        None,
        "Names of flags that may differ from those of the checkpoint although they are fixed for a run. The model card "
        "lists them.",
        resume=FREE,
        metavar="NAME",
    )
    logging_dir: str = flag("logs", "Folder of the trackers' logs, inside --output_dir.", resume=FREE, private=True)
    report_to: str = flag(
        "tensorboard", "Tracker: tensorboard, wandb, comet_ml, all, or none.", resume=FREE, private=True
    )
    tracker_project_name: str = flag("add", "Name of the trackers' project.", resume=FREE, private=True)


@dataclass(frozen=True)
class ValidationOptions:
    """Sample grids during training."""

    title: ClassVar[str] = "validation"

    validation_prompts: tuple[str, ...] | None = flag(
        None, "Prompts of the sample grids at 1, 2 and 4 steps, each in quotation marks.", resume=FREE
    )
    validation_steps: int = flag(200, "Number of iterations between sample grids.", resume=FREE, range=AT_LEAST_ONE)


@dataclass(frozen=True)
class HubOptions:
    """Pushing to the Hub."""

    title: ClassVar[str] = "publishing"

    push_to_hub: bool = flag(
        False, "Upload the published model at the end (no checkpoints, no logs).", resume=FREE, private=True
    )
    hub_model_id: str | None = flag(
        None, "Repo to push to. By default the name of --output_dir.", resume=FREE, private=True
    )
    hub_private_repo: bool | None = flag(
        None, "Make the new repo private. An existing public repo is refused.", resume=FREE, private=True
    )
    push_every_checkpoint: bool = flag(
        False,
        "Also push the student of each checkpoint, without optimizer state, to the branch `checkpoints`.",
        resume=FREE,
        private=True,
    )
    hub_token: str | None = flag(
        None, "Token to push with. By default that of `hf auth login`.", resume=FREE, secret=True
    )

"""Flags for the output of a run: checkpoints, the published model, logs and sample grids."""

from dataclasses import dataclass
from typing import ClassVar

from training.options.declaration import AT_LEAST_ONE, Resume, flag

FREE = Resume.FREE


@dataclass(frozen=True)
class OutputOptions:
    """What a run writes to disk and to trackers."""

    title: ClassVar[str] = "checkpoints and output"

    output_dir: str = flag(
        "add-model",
        "Folder in which the published model, checkpoints and logs are written.",
        resume=FREE,
        private=True,
    )
    export_single_file: str | None = flag(
        None,
        "Also save the student as one .safetensors file in the layout of the original Stable Diffusion checkpoints, "
        "which ComfyUI and other front ends load.",
        resume=FREE,
        private=True,
        metavar="FILE",
    )
    checkpointing_steps: int = flag(
        500, "Save a checkpoint every X iterations. The last iteration is always saved.", resume=FREE,
        range=AT_LEAST_ONE,
    )  # fmt: skip
    checkpoints_total_limit: int | None = flag(
        None,
        "Maximum number of checkpoints to keep. Older ones are removed. By default, all are kept.",
        resume=FREE,
        range=AT_LEAST_ONE,
    )
    resume_from_checkpoint: str | None = flag(
        None,
        "Checkpoint to resume training from: the name or path of a checkpoint-N folder, or `latest` for the last one "
        "in --output_dir.",
        resume=FREE,
        private=True,
    )
    allow_changed: tuple[str, ...] | None = flag(
        None,
        "Names of flags that may differ from the checkpoint's when resuming, although they are fixed during a run. The "
        "model card lists the changes.",
        resume=FREE,
        metavar="NAME",
    )
    logging_dir: str = flag(
        "logs", "Folder inside --output_dir for the logs of the trackers.", resume=FREE, private=True
    )
    report_to: str = flag(
        "tensorboard",
        "Tracker to report the metrics and sample grids to: tensorboard, wandb, comet_ml, another tracker that "
        "accelerate supports, `all` for all that are installed, or `none`.",
        resume=FREE,
        private=True,
    )
    tracker_project_name: str = flag("add", "Project name that is passed to the tracker.", resume=FREE, private=True)


@dataclass(frozen=True)
class ValidationOptions:
    """Sample grids during training."""

    title: ClassVar[str] = "validation"

    validation_prompts: tuple[str, ...] | None = flag(
        None,
        "Prompts for the sample grids, each in quotation marks. The grids show samples in 1, 2 and 4 steps.",
        resume=FREE,
    )
    validation_steps: int = flag(200, "Generate sample grids every X iterations.", resume=FREE, range=AT_LEAST_ONE)


@dataclass(frozen=True)
class HubOptions:
    """Pushing to the Hub."""

    title: ClassVar[str] = "publishing"

    push_to_hub: bool = flag(
        False,
        "Push the model to the Hub at the end of the run, without checkpoints and logs.",
        resume=FREE,
        private=True,
    )
    hub_model_id: str | None = flag(
        None,
        "Name of the Hub repo to push to. Defaults to the name of --output_dir.",
        resume=FREE,
        private=True,
    )
    hub_private_repo: bool | None = flag(
        None,
        "Create the Hub repo as a private one. If a public repo of that name exists, the run is refused.",
        resume=FREE,
        private=True,
    )
    push_every_checkpoint: bool = flag(
        False,
        "Also push the student of each checkpoint, without optimizer state, to the branch `checkpoints`.",
        resume=FREE,
        private=True,
    )
    hub_token: str | None = flag(
        None,
        "Token for pushing to the Hub. Defaults to the token stored by `hf auth login`.",
        resume=FREE,
        secret=True,
    )

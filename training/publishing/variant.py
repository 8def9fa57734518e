"""Half-precision variants of the published weights, in addition to the float32 files."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from training.publishing.folder.layout import INDEX, PublishError
from training.publishing.folder.published_folder import files_to_keep, published_files
from training.publishing.folder.replacement import replacing_student

VARIANTS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def check_variant(folder: str | Path, variant: str) -> None:
    """Refuse a folder that no variant can be added to.

    Raises:
        PublishError: the folder only contains a LoRA, or was not written by training.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise PublishError(f"--variant got {variant!r}: {folder} is not a full model, only a LoRA; leave the flag out")
    files_to_keep(folder)


def add_variant(folder: str | Path, variant: str) -> list[str]:
    """Write `*.fp16.safetensors` (or bf16) beside each component's weights. Returns the new files' relative paths.

    Load the variant with `from_pretrained(repo, variant="fp16", torch_dtype=torch.float16)`. Configs are not changed.
    All files are added atomically: after a crash, the folder has either the complete variant or none of its files.

    Raises:
        PublishError: see `check_variant`; or the folder is not complete or cannot be written to.
    """
    folder = Path(folder)
    check_variant(folder, variant)
    published_files(folder)  # verifies the weights before they are copied
    kept = {name: entry for name, entry in files_to_keep(folder).items() if f".{variant}" not in name}
    with replacing_student(folder, added_to=kept) as stage:
        pipeline = DiffusionPipeline.from_pretrained(folder, dtype=VARIANTS[variant], local_files_only=True)
        pipeline.save_pretrained(stage, variant=variant)
        new = [path.relative_to(stage).as_posix() for path in stage.glob(f"*/*.{variant}*")]
        for path in stage.rglob("*"):
            if path.is_file() and path.relative_to(stage).as_posix() not in new:
                path.unlink()
    return sorted(new)

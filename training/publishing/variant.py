"""Half-precision copies of the published weights, beside the full ones, as diffusers' variant files."""

import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from training.publishing.layout import INDEX, PublishError, is_component_file

VARIANTS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def add_variant(folder: str | Path, variant: str) -> list[str]:
    """Write `*.fp16.safetensors` (or bf16) beside each component's weights. Returns the new files' relative paths.

    Read back as `from_pretrained(repo, variant="fp16", torch_dtype=torch.float16)`. Configs are left as they are.

    Raises:
        PublishError: the folder holds a LoRA alone, whose file is small anyway.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise PublishError(f"--variant got {variant!r}: {folder} holds no full model, only a LoRA; leave the flag out")
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=VARIANTS[variant], local_files_only=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".variant-") as scratch:
        pipeline.save_pretrained(scratch, variant=variant)
        new = [p.relative_to(scratch) for p in Path(scratch).glob(f"*/*.{variant}*")]
        for name in new:
            shutil.move(Path(scratch, name), folder / name)
    return sorted(name.as_posix() for name in new)


def remove_variants(folder: str | Path) -> None:
    """Delete the variant files of an earlier student, which would otherwise be published beside the new weights."""
    for variant in VARIANTS:
        for path in Path(folder).glob(f"*/*.{variant}*"):
            if is_component_file(path.name):
                path.unlink()

"""Out-of-memory errors that list the memory-saving flags not yet in use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from training.errors import UserError
from training.options.derived import decodes
from training.options.options import Options, all_flags


class OutOfMemoryError(UserError):
    """The device is out of memory; the message lists the flags that would help."""


@contextmanager
def advise_when_out_of_memory(options: Options) -> Iterator[None]:
    """Context manager that turns torch's out-of-memory error into one that lists the memory-saving flags.

    Raises:
        OutOfMemoryError: torch raised an out-of-memory error within the context.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"out of memory: {' '.join(str(error).split())} {advice(options)}") from error


def advice(options: Options) -> str:
    """The memory-saving flags that are not in use yet; flags that do not change the method come first.

    The saving of each flag is part of its declaration, as counted for SDXL by `python -m benchmarks.full_size options`.
    """
    hardware, optimization, lora = options.hardware, options.optimization, options.lora
    saves = {flag.name: f" ({flag.saves})" for flag in all_flags() if flag.saves}
    same_repo = options.models.pretrained_student_model is None
    batch, accumulation = optimization.train_batch_size, optimization.gradient_accumulation_steps
    checkpointing = ("gradient_checkpointing", "", not hardware.gradient_checkpointing)
    eight_bit = ("use_8bit_adam", "", not optimization.use_8bit_adam and not lora.use_lora)
    # With one or two images, gradients and optimizer state take most of the memory; with more images, activations do.
    first = (eight_bit, checkpointing) if batch <= 2 and not lora.use_lora else (checkpointing, eight_bit)
    candidates = (
        *first,
        ("train_batch_size", f" {batch // 2} --gradient_accumulation_steps {2 * accumulation}", batch > 1),
        ("cache_dir_latents", " DIR", hardware.cache_dir_latents is None),
        ("use_lora", "", same_repo and not lora.use_lora),
        (
            "decode_crop_size",
            " 224",
            hardware.decode_crop_size is None and options.data.resolution > 224 and decodes(options),
        ),
        (
            "distillation_space",
            " latent",
            same_repo and options.method.distillation_space == "pixel" and options.method.distillation_weight > 0,
        ),
        ("teacher_precision", " 4bit", hardware.teacher_precision not in ("4bit", "8bit")),
    )
    unused = [f"--{name}{value}{saves.get(name, '')}" for name, value, applies in candidates if applies]
    if not unused:
        return "All memory-saving flags are already in use; lower --resolution or use a device with more memory"
    return "Flags that save memory, those that do not change the method first: " + "; ".join(unused)

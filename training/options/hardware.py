"""Flags of precision, memory and speed."""

from dataclasses import dataclass
from typing import ClassVar

from training.options.declaration import AT_LEAST_ONE, NOT_NEGATIVE, Resume, flag

FIXED, FREE = Resume.FIXED, Resume.FREE


@dataclass(frozen=True)
class HardwareOptions:
    """Precision, memory and speed."""

    title: ClassVar[str] = "hardware"

    mixed_precision: str | None = flag(
        None,
        "By default accelerate's configuration; if that says nothing, bf16 on a GPU that supports it and float32 "
        "elsewhere.",
        resume=FIXED,
        choices=("no", "fp16", "bf16"),
    )
    allow_bf16_output: bool = flag(
        False,
        "With bf16, also compute the outermost layers of an epsilon student in bf16, which is faster. By default they "
        "run in float32, because at the last timestep their rounding errors are multiplied by 14.6.",
        resume=FIXED,
    )
    gradient_checkpointing: bool = flag(
        False,
        "Recompute the activations of student and decoder in the backward pass, which saves memory and costs time.",
        resume=FREE,
        saves="four fifths of the activations, for a quarter more computing",
    )
    enable_xformers_memory_efficient_attention: bool = flag(
        False, "Use xformers in the UNets (GPU only) instead of torch's own attention.", resume=FREE
    )
    allow_tf32: bool = flag(
        False,
        "Use TF32 for float32 matrix products and convolutions on Ampere GPUs and later, including those of the "
        "discriminator's heads and of R1: faster, with 10 bits of mantissa instead of 23.",
        resume=FIXED,
    )
    teacher_precision: str | None = flag(
        None,
        "Precision of the teacher's UNet, and of the base with --use_lora: 8bit and 4bit (NF4) use bitsandbytes. By "
        "default that of the run.",
        resume=FIXED,
        choices=("fp32", "fp16", "bf16", "8bit", "4bit"),
        saves="up to three quarters of the frozen UNet",
    )
    decode_crop_size: int | None = flag(
        None,
        "Decode only a random square of this many pixels of each image for the losses, and crop the real image alike; "
        "a multiple of 8. Decoding is most of the cost of an iteration.",
        resume=FIXED,
        range=AT_LEAST_ONE,
        saves="a third of the activations that are left",
    )
    decode_crop_halo: int = flag(
        4,
        "Number of latents that are decoded around --decode_crop_size and discarded, so that the pixels at the crop's "
        "border see their surroundings: 0 is cheapest, 8 almost equals the full decoding.",
        resume=FIXED,
        range=NOT_NEGATIVE,
    )
    pretrained_tiny_vae_model: str | None = flag(
        None,
        "An AutoencoderTiny of the student's latent space (such as madebyollin/taesd or madebyollin/taesdxl) that "
        "decodes for the losses. The published model keeps the full autoencoder.",
        resume=FIXED,
    )
    tiny_vae_revision: str | None = flag(
        None, "Branch, tag or commit of the Hub repo of --pretrained_tiny_vae_model.", resume=FIXED
    )
    cache_dir_latents: str | None = flag(
        None,
        "Folder for the latents, caption embeddings, c_text and c_img of the whole data set: computed once, then read. "
        "Requires --center_crop and no --random_flip.",
        resume=FREE,
        private=True,
        saves="the encoders leave the device",
    )

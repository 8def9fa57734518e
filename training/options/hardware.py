"""Flags for precision, memory and speed."""

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
        "Whether to use mixed precision. Defaults to the setting of the accelerate config; without one, to bf16 on a "
        "GPU that supports it and to float32 (`no`) elsewhere.",
        resume=FIXED,
        choices=("no", "fp16", "bf16"),
    )
    allow_bf16_output: bool = flag(
        False,
        "With bf16, also compute the outermost layers of an epsilon student in bf16, which is faster. By default, they "
        "run in float32, because at the last timestep their rounding errors are multiplied by 14.6.",
        resume=FIXED,
    )
    gradient_checkpointing: bool = flag(
        False,
        "Use gradient checkpointing for the student and the decoder to save memory at the expense of a slower backward "
        "pass.",
        resume=FREE,
        saves="four fifths of the activations, for a quarter more compute",
    )
    enable_xformers_memory_efficient_attention: bool = flag(
        False, "Use xformers attention in the UNets instead of PyTorch's own attention. Requires a GPU.", resume=FREE
    )
    allow_tf32: bool = flag(
        False,
        "Allow TF32 on Ampere GPUs and later to speed up training. It applies to all float32 matrix products and "
        "convolutions, including those of the discriminator's heads and of R1, and has 10 bits of mantissa instead of "
        "23.",
        resume=FIXED,
    )
    teacher_precision: str | None = flag(
        None,
        "Precision of the teacher's UNet, and with --use_lora also of the student's base weights. 8bit and 4bit (NF4) "
        "use bitsandbytes. Defaults to the precision of the run.",
        resume=FIXED,
        choices=("fp32", "fp16", "bf16", "8bit", "4bit"),
        saves="up to three quarters of the frozen UNet",
    )
    decode_crop_size: int | None = flag(
        None,
        "Side in pixels, a multiple of 8, of the random square of each image that is decoded for the losses; the real "
        "image is cropped to the same square. Decoding is most of the cost of an iteration. By default, the whole "
        "image is decoded.",
        resume=FIXED,
        range=AT_LEAST_ONE,
        saves="a third of the remaining activations",
    )
    decode_crop_halo: int = flag(
        4,
        "Width in latent pixels of the border that is decoded around the crop of --decode_crop_size and then "
        "discarded, so that the decoder has context at the edges of the crop. 0 is cheapest; 8 is almost equal to "
        "decoding the whole image.",
        resume=FIXED,
        range=NOT_NEGATIVE,
    )
    pretrained_tiny_vae_model: str | None = flag(
        None,
        "Hub id or folder of an AutoencoderTiny for the student's latent space (such as madebyollin/taesd or "
        "madebyollin/taesdxl) that decodes the images for the losses. The published model keeps the full autoencoder.",
        resume=FIXED,
    )
    tiny_vae_revision: str | None = flag(
        None, "Branch, tag or commit of the Hub repo of --pretrained_tiny_vae_model.", resume=FIXED
    )
    cache_dir_latents: str | None = flag(
        None,
        "Folder in which the latents, caption embeddings, c_text and c_img of the whole data set are cached. They are "
        "computed once and read from then on. Requires --center_crop and cannot be used with --random_flip.",
        resume=FREE,
        private=True,
        saves="the memory of the encoders, which are not kept on the device",
    )

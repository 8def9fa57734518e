"""Flags for the pretrained models and for LoRA."""

from dataclasses import MISSING, dataclass
from typing import ClassVar

from training.options.declaration import AT_LEAST_ONE, FRACTION, POSITIVE, Range, Resume, flag

FIXED, FREE = Resume.FIXED, Resume.FREE


@dataclass(frozen=True)
class ModelOptions:
    """The models that a run starts from."""

    title: ClassVar[str] = "models"

    pretrained_teacher_model: str = flag(
        MISSING,
        "Hub id or folder of the teacher. The student starts from the teacher's weights unless "
        "--pretrained_student_model is given.",
        resume=FIXED,
    )
    revision: str | None = flag(None, "Branch, tag or commit of the teacher's Hub repo.", resume=FIXED)
    variant: str | None = flag(None, "Variant of the teacher's weight files, such as fp16.", resume=FIXED)
    pretrained_student_model: str | None = flag(
        None,
        "Hub id or folder of the model that the student starts from, if it is not the teacher. Its prediction type, "
        "size and latent space may differ from the teacher's (Table 1e). Student and teacher each keep their own "
        "autoencoder, text encoders and schedule.",
        resume=FIXED,
    )
    student_revision: str | None = flag(None, "Branch, tag or commit of the student's Hub repo.", resume=FIXED)
    student_variant: str | None = flag(None, "Variant of the student's weight files, such as fp16.", resume=FIXED)
    cache_dir: str | None = flag(
        None, "Directory in which downloaded models and data sets are stored.", resume=FREE, private=True
    )
    student_init: str = flag(
        "teacher",
        "Initial weights of the student. `teacher` uses the pretrained weights (those of --pretrained_student_model if "
        "it is given). `random` is only meant for the comparison of Table 1c, where it collapses (FID 293.6).",
        resume=FIXED,
        choices=("teacher", "random"),
    )


@dataclass(frozen=True)
class SDXLOptions:
    """Flags that only the SDXL script has."""

    title: ClassVar[str] = "SDXL"

    pretrained_vae_model_name_or_path: str | None = flag(
        None,
        "Hub id or folder of an autoencoder that replaces the student's own, such as madebyollin/sdxl-vae-fp16-fix. It "
        "is published with the student. The stock SDXL autoencoder overflows in fp16 and is run in bf16 or fp32 "
        "instead.",
        resume=FIXED,
    )
    vae_revision: str | None = flag(
        None, "Branch, tag or commit of the Hub repo of --pretrained_vae_model_name_or_path.", resume=FIXED
    )


@dataclass(frozen=True)
class SD3Options:
    """Flags of Stable Diffusion 3's script alone."""

    title: ClassVar[str] = "Stable Diffusion 3"

    max_sequence_length: int = flag(
        256,
        "Number of T5's tokens that the transformer reads, at most 512. Pipelines use 256 unless they are told "
        "otherwise.",
        resume=FIXED,
        range=Range(lambda v: 1 <= v <= 512, "1 to 512"),
    )
    no_text_encoder_3: bool = flag(
        False,
        "Leave out T5, the third and by far the largest text encoder, in training and in the published model. As in "
        "stock pipelines, the transformer is given zeros in its place; these are loaded with text_encoder_3=None and "
        "tokenizer_3=None then.",
        resume=FIXED,
    )


@dataclass(frozen=True)
class LoraOptions:
    """LoRA-only training."""

    title: ClassVar[str] = "LoRA"

    use_lora: bool = flag(
        False,
        "Train only a LoRA adapter. If the student starts from the teacher's repo, the teacher is the same UNet with "
        "the adapter disabled, so that only one copy is in memory.",
        resume=FIXED,
        saves="four fifths of the memory for weights and optimizer state",
    )
    lora_rank: int = flag(64, "The dimension of the LoRA update matrices.", resume=FIXED, range=AT_LEAST_ONE)
    lora_alpha: float | None = flag(
        None,
        "LoRA alpha: the update is scaled by alpha / rank. Defaults to --lora_rank, a scale of 1.",
        resume=FIXED,
        range=POSITIVE,
    )
    lora_dropout: float = flag(
        0.0, "Dropout probability of the inputs of the LoRA layers.", resume=FIXED, range=FRACTION
    )
    lora_target_modules: tuple[str, ...] | None = flag(
        None,
        "Name endings of the modules to adapt. By default all linear layers and convolutions of the UNet's blocks, as "
        "in LCM-LoRA, or all linear layers of the transformer's blocks.",
        resume=FIXED,
        metavar="NAME",
    )
    fuse_lora: bool = flag(False, "Also save the whole pipeline with the adapter fused into it.", resume=FREE)

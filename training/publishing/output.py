"""Writes the student to the output folder, as a full pipeline or a LoRA adapter, with its card."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin

from training.models.families import Family
from training.models.lora import fuse_lora, save_lora
from training.options.options import Options
from training.publishing.card.card import is_edited, write_card
from training.publishing.folder.layout import CARD
from training.publishing.folder.published_folder import set_sample_size
from training.publishing.folder.replacement import replacing_student


def write_output(
    options: Options,
    folder: Path,
    family: Family,
    student: ModelMixin,
    scheduler: SchedulerMixin,
    facts: Mapping[str, Any],
) -> None:
    """Write the student to `folder` atomically, replacing an older student. An edited card is kept.

    The frozen components are loaded again in their original precision, because those of the run may be in half
    precision.

    Args:
        student: UNet with the weights to publish.
        facts: facts of the run for the card.

    Raises:
        PublishError: the student cannot be written or is not complete; an older student is not changed.
        FolderInUse: another process is writing into `folder`.
    """
    with replacing_student(folder) as stage:
        if options.lora.use_lora:
            save_lora(student, family.pipeline_class, stage, family.network)
            scheduler.save_pretrained(stage / "scheduler")
        if not options.lora.use_lora or options.lora.fuse_lora:
            fresh, cpu = family.unloaded(), torch.device("cpu")
            fresh.load_text_encoders(torch.float32, cpu)
            fresh.load_vae(torch.float32, cpu)
            unet = fresh.load_unet(torch.float32, cpu) if options.lora.use_lora else student
            pipeline = fresh.pipeline(unet, scheduler)
            if options.lora.use_lora:
                fuse_lora(pipeline, stage)
            pipeline.save_pretrained(stage)
            set_sample_size(stage, options.data.resolution // fresh.factor, family.network)
        card = write_card(options, stage, facts, family.pipeline_class.__name__, base_model=family.name)
        for weights in (*stage.glob("*.safetensors"), *stage.glob("*/*.safetensors")):
            shutil.copymode(card, weights)  # safetensors creates files that only their owner can read
        if is_edited(folder / CARD):
            card.unlink()

"""What a run leaves for others: the published layout, or the adapter, with its card."""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DConditionModel

from training.models.families import Family
from training.models.lora import fuse_lora, save_lora
from training.publishing.card import write_card
from training.publishing.hub import save_published


def write_output(
    args: argparse.Namespace,
    folder: Path,
    family: Family,
    student: UNet2DConditionModel,
    scheduler: SchedulerMixin,
    facts: Mapping[str, Any],
) -> None:
    """Write the student to `folder`.

    The frozen parts are loaded afresh, as they came: those of the run may be in half precision, and stay as they are.

    Args:
        student: with the weights to publish.
        facts: of the run, for the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if args.use_lora:
        save_lora(student, family.pipeline_class, folder)
        scheduler.save_pretrained(folder / "scheduler")
    if not args.use_lora or args.fuse_lora:
        fresh, cpu = family.unloaded(), torch.device("cpu")
        fresh.load_text_encoders(torch.float32, cpu)
        fresh.load_vae(torch.float32, cpu)
        unet = fresh.load_unet(torch.float32, cpu) if args.use_lora else student
        pipeline = fresh.pipeline(unet, scheduler)
        if args.use_lora:
            fuse_lora(pipeline, folder)
        save_published(pipeline, folder)
    card = write_card(args, folder, facts, family.pipeline_class.__name__, base_model=family.name)
    for weights in (*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")):
        shutil.copymode(card, weights)  # safetensors makes files that only their owner may read

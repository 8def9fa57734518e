"""The end result: the published layout in `--output_dir`, and on the Hub on request."""

import argparse
import logging
import os
from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

# What training leaves in --output_dir beside the model. None of it is ever uploaded.
NEVER_PUBLISHED = ["checkpoint-*/**", ".*checkpoint-*/**", "validation/**"]


def save_published(pipeline: DiffusionPipeline, output_dir: str | Path) -> None:
    """Write the published layout: stock components, stock scheduler config, `pipeline.py`."""
    pipeline.save_pretrained(output_dir)


def push_published(args: argparse.Namespace) -> str:
    """Upload the published layout in one commit. Returns the repo id.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: the Hub refused; the model stays in `--output_dir`.
    """
    api = HfApi(token=args.hub_token)
    name = args.hub_model_id or Path(os.path.abspath(args.output_dir)).name
    repo_id = api.create_repo(name, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repo_id,
        folder_path=args.output_dir,
        ignore_patterns=[*NEVER_PUBLISHED, f"{args.logging_dir}/**"],
        commit_message="Add a student distilled by ADD",
    )
    logger.info("Published %s", repo_id)
    return repo_id

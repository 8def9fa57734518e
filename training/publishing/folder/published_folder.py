"""The published layout in an output folder: written atomically, and verified before it is uploaded or exported."""

import json
import logging
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from training.publishing.folder.layout import CARD, RUN_FILE, SAMPLES, PublishError, layout_files
from training.publishing.folder.replacement import finish_replacement, replacing_student
from training.publishing.folder.verification import EDITABLE, FILES, describe_files, read_files, verify_files

logger = logging.getLogger(__name__)


def published_files(folder: str | Path, hashes: bool = True) -> list[str]:
    """Verify the published layout in `folder` and return its relative paths, sorted, `/`-separated.

    If training has written a list of files, the layout consists of these files, the card and the sample grid; otherwise
    of all files that have a name of the layout. A replacement that was interrupted by a crash is finished first.

    Args:
        folder: output folder of a finished run.
        hashes: whether to compare SHA-256 hashes, which reads all files.

    Raises:
        PublishError: the folder does not contain a finished student, or a file is missing, truncated, damaged or
            changed; the message names the file.
    """
    folder = Path(folder)
    finish_replacement(folder)
    entries = read_files(folder)
    if entries is None:
        names = layout_files(folder)
    else:
        names = layout_files(folder, among={*entries, CARD, SAMPLES})
        if gone := [name for name in entries if name not in EDITABLE and not (folder / name).is_file()]:
            raise PublishError(f"{folder} is not complete, so nothing is published. Missing: {', '.join(sorted(gone))}")
        if others := sorted(set(layout_files(folder)) - set(names)):
            logger.warning("Not published, because training did not write these files: %s", ", ".join(others))
    verify_files(folder, names, hashes)
    return names


def save_published(pipeline: DiffusionPipeline, output_dir: str | Path) -> None:
    """Write the published layout: stock components, stock scheduler config, `pipeline.py`. Replaces an older student.

    Raises:
        PublishError: the layout cannot be written; the older student is not changed.
    """
    with replacing_student(output_dir) as stage:
        pipeline.save_pretrained(stage)


def set_sample_size(folder: Path, sample_size: int, network: str = "unet") -> None:
    """Say in the saved network's config what size it was trained at, which pipelines draw where none is given.

    Only the file is changed, because the network may still be trained.

    Args:
        folder: holds the network's folder, with its `config.json`.
        sample_size: side of a latent, pixels over the autoencoder's factor.
        network: "unet" or "transformer".
    """
    path = folder / network / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"sample_size": sample_size}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def files_to_keep(folder: Path) -> dict[str, dict[str, Any]]:
    """The existing files of a student to which files are added, as entries of `add_files.json`.

    Raises:
        PublishError: the folder was not written by training.
    """
    entries = read_files(folder)
    if entries is not None:
        return entries
    if not (folder / RUN_FILE).is_file():  # an earlier version wrote this file, but no list of files
        raise PublishError(
            f"{folder} has neither {FILES} nor {RUN_FILE}, so it was not written by training and is not changed. Give "
            "the --output_dir of a finished run"
        )
    return describe_files(folder, [*layout_files(folder), RUN_FILE])

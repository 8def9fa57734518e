"""The published layout in an output folder: written whole or not at all, and verified before anyone gets it."""

import json
import logging
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from training.publishing.layout import CARD, RUN_FILE, SAMPLES, PublishError, layout_files
from training.publishing.replacement import finish_replacement, replacing_student
from training.publishing.verification import EDITABLE, FILES, describe_files, read_files, verify_files

logger = logging.getLogger(__name__)


def published_files(folder: str | Path, hashes: bool = True) -> list[str]:
    """Relative paths of the published layout in `folder`, verified, sorted, `/`-separated.

    Where training has left its list of files, these are the files of that list, and the card and the sample grid; in
    any other folder all files that have a name of the layout. A student that was ready when its process was killed is
    put in place first.

    Args:
        folder: the output folder of a finished run.
        hashes: False leaves out the comparison of SHA-256 sums, which reads every byte.

    Raises:
        PublishError: the folder holds no finished student, or one with a file that is missing, cut short, damaged or
            changed since it was written; names the file.
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
            logger.warning("Not published, since training did not write them: %s", ", ".join(others))
    verify_files(folder, names, hashes)
    return names


def save_published(pipeline: DiffusionPipeline, output_dir: str | Path) -> None:
    """Write the published layout: stock components, stock scheduler config, `pipeline.py`. Replaces an older student.

    Raises:
        PublishError: it cannot be written; the older student is as it was.
    """
    with replacing_student(output_dir) as stage:
        pipeline.save_pretrained(stage)


def set_sample_size(folder: Path, sample_size: int, network: str = "unet") -> None:
    """Say in the saved network's config what size it was trained at, which pipelines draw where none is given.

    In the file, not in the network: the config of a network that trains stays as it was loaded.

    Args:
        folder: holds the network's folder, with its `config.json`.
        sample_size: side of a latent, pixels over the autoencoder's factor.
        network: "unet" or "transformer".
    """
    path = folder / network / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"sample_size": sample_size}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def files_to_keep(folder: Path) -> dict[str, dict[str, Any]]:
    """What a student that something is added to consists of, as entries of `add_files.json`.

    Raises:
        PublishError: the folder was not written by training.
    """
    entries = read_files(folder)
    if entries is not None:
        return entries
    if not (folder / RUN_FILE).is_file():  # an earlier version left this, and no list
        raise PublishError(
            f"{folder} has neither {FILES} nor {RUN_FILE}, so it was not written by training, and nothing is added to "
            "it. Give the --output_dir of a finished run"
        )
    return describe_files(folder, [*layout_files(folder), RUN_FILE])

"""Checks that a run may use its output folder: no input, other run or foreign model is in it, and it is writable."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from training.checkpoints.manifest import is_ours as is_checkpoint
from training.checkpoints.store import DISPLACED, FINAL
from training.errors import OptionError
from training.publishing.folder.layout import INDEX, RUN_FILE
from training.publishing.folder.verification import FILES
from training.publishing.single_file.export import is_export

_DEPTH = 3  # levels to search for models, as in folders/organisation/model/unet


def check_output_folder(
    output_dir: str | Path, resume_from: str | None = None, read: Mapping[str, str | Path | None] | None = None
) -> None:
    """Refuse an output folder in which a run would damage other files, or that is not writable.

    Only the main process should call this function, before anything is loaded. The folder is created if necessary.

    Args:
        output_dir: value of `--output_dir`.
        resume_from: value of `--resume_from_checkpoint`.
        read: inputs of the run by flag, such as {"--train_data_dir": ..., "--cache_dir_latents": ...}. Values that are
            None or not local folders, such as Hub ids, are ignored. The latent cache need not exist yet.

    Raises:
        OptionError: the folder cannot be used; the message names the flag, its value and the fix.
    """
    check_apart(output_dir, read or {})
    check_unused(output_dir, resume_from)
    check_no_foreign_model(output_dir)
    check_writable(output_dir)


def check_apart(output_dir: str | Path, read: Mapping[str, str | Path | None]) -> None:
    """Refuse an output folder that is, contains, or is inside a folder that the run reads.

    Raises:
        OptionError: there is such a folder; the message names both flags.
    """
    output = Path(output_dir).resolve()
    for flag, value in read.items():
        if value is None or not (os.path.isdir(value) or flag == "--cache_dir_latents"):
            continue
        other = Path(value).resolve()
        if output == other:
            how = "is the same folder"
        elif output in other.parents:
            how = "is in it"
        elif other in output.parents:
            how = "contains it"
        else:
            continue
        raise OptionError(
            f"--output_dir got {str(output_dir)!r}: {flag} {str(value)!r} {how}, so the run would write into its own "
            "input. Give another folder"
        )


def check_unused(output_dir: str | Path, resume_from: str | None) -> None:
    """Refuse the folder of another run unless that run is resumed, because the checkpoints of two runs would be mixed.

    Raises:
        OptionError: the folder contains files of another run; the message names them and the fix.
    """
    output = Path(output_dir)
    found = [path.name for path in output.iterdir()] if output.is_dir() else []
    traces = [name for name in (RUN_FILE, FILES) if name in found]
    traces += sorted(name for name in found if FINAL.fullmatch(name) or DISPLACED.fullmatch(name))
    if not traces:
        return
    if resume_from is None:
        raise OptionError(
            f"--output_dir got {str(output_dir)!r}: the folder contains {traces[0]} from an earlier run. Resume that "
            "run with --resume_from_checkpoint latest, or give another folder"
        )
    elsewhere = Path(resume_from).is_dir() and Path(resume_from).resolve().parent != output.resolve()
    if resume_from != "latest" and elsewhere:
        raise OptionError(
            f"--output_dir got {str(output_dir)!r}: the folder contains {traces[0]} from an earlier run, but "
            f"--resume_from_checkpoint {resume_from!r} belongs to another run. Give another --output_dir"
        )


def check_no_foreign_model(output_dir: str | Path) -> None:
    """Refuse a folder that contains, or is inside, a model that this program did not write.

    A folder with files of a previous run is accepted, because publishing only replaces files of this program.

    Raises:
        OptionError: there is such a model; the message names it.
    """
    output = Path(output_dir)
    if not _is_ours(output):
        for model in foreign_models(output):
            raise OptionError(
                f"--output_dir got {str(output_dir)!r}: {model} belongs to a model that this program did not write. "
                "Give an empty or a new folder"
            )
    for parent in output.resolve().parents:
        if (parent / INDEX).is_file() and not _is_ours(parent):
            raise OptionError(
                f"--output_dir got {str(output_dir)!r}, which is inside the model {parent}. Give another folder"
            )


def foreign_models(folder: Path) -> Iterator[Path]:
    """Yield the files of models in `folder`, a few levels deep, that this program did not write."""
    for root, folders, files in os.walk(folder):
        path = Path(root)
        depth = len(path.relative_to(folder).parts)
        folders[:] = sorted(
            name for name in folders if depth < _DEPTH and not is_checkpoint(path / name) and not _is_ours(path / name)
        )
        for name in sorted(files):
            is_weights = name.endswith((".safetensors", ".ckpt")) or (name.endswith(".bin") and "model" in name)
            if name == INDEX or (is_weights and not is_export(path / name)):
                yield path / name


def check_writable(output_dir: str | Path) -> None:
    """Create the folder and write a temporary file, so that a failure is not only noticed at the first checkpoint.

    Raises:
        OptionError: the folder cannot be created or written to.
    """
    try:
        os.makedirs(output_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OptionError(
            f"--output_dir got {str(output_dir)!r}, which cannot be written to: {error}. Give another folder"
        ) from error


def _is_ours(folder: Path) -> bool:
    """Whether the folder contains a student or a checkpoint of this program."""
    if (folder / RUN_FILE).is_file() or (folder / FILES).is_file():
        return True
    names = os.listdir(folder) if folder.is_dir() and os.access(folder, os.R_OK) else []
    return any(FINAL.fullmatch(name) and is_checkpoint(folder / name) for name in names)

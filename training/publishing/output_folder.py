"""Whether a run may use its output folder: nothing of anyone's lies in it, and no other run's."""

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

_DEPTH = 3  # folders/organisation/model/unet: as deep as models are usually kept


def check_output_folder(
    output_dir: str | Path, resume_from: str | None = None, read: Mapping[str, str | Path | None] | None = None
) -> None:
    """Refuse an output folder in which a run would damage something, or that it cannot write to. Before anything loads.

    To be called at the main process. The folder is made if it is not there.

    Args:
        output_dir: of `--output_dir`.
        resume_from: of `--resume_from_checkpoint`.
        read: what the run reads, by flag, such as {"--train_data_dir": ..., "--cache_dir_latents": ...}. Values that
            are None or no local folder, such as Hub ids, are passed over; the latents' cache may not be there yet.

    Raises:
        OptionError: names the flag, the value and the fix.
    """
    check_apart(output_dir, read or {})
    check_unused(output_dir, resume_from)
    check_no_foreign_model(output_dir)
    check_writable(output_dir)


def check_apart(output_dir: str | Path, read: Mapping[str, str | Path | None]) -> None:
    """Refuse an output folder that is, is in, or contains a folder that the run reads.

    Raises:
        OptionError: names both flags.
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
            f"--output_dir got {str(output_dir)!r}: {flag} {str(value)!r} {how}, and a run would write among what it "
            "reads. Name another folder"
        )


def check_unused(output_dir: str | Path, resume_from: str | None) -> None:
    """Refuse the folder of another run unless that run is resumed: two runs in one folder would mix their checkpoints.

    Raises:
        OptionError: names what was found, and the two ways on.
    """
    output = Path(output_dir)
    found = [path.name for path in output.iterdir()] if output.is_dir() else []
    traces = [name for name in (RUN_FILE, FILES) if name in found]
    traces += sorted(name for name in found if FINAL.fullmatch(name) or DISPLACED.fullmatch(name))
    if not traces:
        return
    if resume_from is None:
        raise OptionError(
            f"--output_dir got {str(output_dir)!r}: an earlier run has left {traces[0]} there. Go on with it by "
            "--resume_from_checkpoint latest, or name another folder"
        )
    elsewhere = Path(resume_from).is_dir() and Path(resume_from).resolve().parent != output.resolve()
    if resume_from != "latest" and elsewhere:
        raise OptionError(
            f"--output_dir got {str(output_dir)!r}: an earlier run has left {traces[0]} there, and "
            f"--resume_from_checkpoint {resume_from!r} is another run's. Name another --output_dir"
        )


def check_no_foreign_model(output_dir: str | Path) -> None:
    """Refuse a folder with a model, in it or around it, that this program did not write.

    A folder in which a run of ours has left its traces is ours: what it publishes replaces only its own files.

    Raises:
        OptionError: names the model.
    """
    output = Path(output_dir)
    if not _is_ours(output):
        for model in foreign_models(output):
            raise OptionError(
                f"--output_dir got {str(output_dir)!r}: {model} is of a model that this program did not write. Name an "
                "empty or a new folder"
            )
    for parent in output.resolve().parents:
        if (parent / INDEX).is_file() and not _is_ours(parent):
            raise OptionError(
                f"--output_dir got {str(output_dir)!r}, which is inside the model {parent}. Name another folder"
            )


def foreign_models(folder: Path) -> Iterator[Path]:
    """Files of models in `folder`, a few levels deep, that this program did not write."""
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
    """Make the folder and write a file there that vanishes, rather than learn at the first checkpoint.

    Raises:
        OptionError: the folder cannot be made or not written to.
    """
    try:
        os.makedirs(output_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OptionError(
            f"--output_dir got {str(output_dir)!r}, which cannot be written to: {error}. Name another folder"
        ) from error


def _is_ours(folder: Path) -> bool:
    """Whether a run of ours has left a student or a checkpoint there."""
    if (folder / RUN_FILE).is_file() or (folder / FILES).is_file():
        return True
    names = os.listdir(folder) if folder.is_dir() and os.access(folder, os.R_OK) else []
    return any(FINAL.fullmatch(name) and is_checkpoint(folder / name) for name in names)

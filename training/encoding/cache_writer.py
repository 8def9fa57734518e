"""Computes the cache. Each process computes its share, and an interrupted cache is continued.

The rows of a table are computed in batches of `BATCH`. The file `progress` has a byte for each batch, which is set when
its rows are written. Nothing is ever deleted: a folder that contains anything but a part of the same cache is refused.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from training.checkpoints.folder_lock import LOCK
from training.checkpoints.manifest import replace_text, sync
from training.data.dataset import ImageTextDataset, collate, ignore_interrupt, read_batches
from training.data.order import SampleKey
from training.data.reader import SampleReader, caption_options
from training.encoding.cache_arrays import CHECKSUMS, CacheError, CheckedArray, create_array
from training.encoding.embeddings import OnlineEmbeddings
from training.errors import OptionError
from training.models.families import Family
from training.processes.main_process import on_main_process

logger = logging.getLogger(__name__)
FINGERPRINT, PROGRESS = "fingerprint.json", "progress"
UNFINISHED = FINGERPRINT + ".part"  # name of the fingerprint until the cache is complete
MARKS = {"data", "samples", "vae"}  # keys that identify a fingerprint of this program
BATCH = 16  # images or captions encoded at a time


@dataclass(frozen=True)
class Table:
    """One folder of arrays.

    Attributes:
        name: name of the folder.
        count: number of rows.
        encode: takes ranges of row numbers, and yields for each range the rows of the arrays by the arrays' names.
    """

    name: str
    count: int
    encode: Callable[[list[range]], Iterable[dict[str, Tensor]]]

    def batches(self) -> list[range]:
        """Ranges of `BATCH` row numbers."""
        return [range(start, min(start + BATCH, self.count)) for start in range(0, self.count, BATCH)]


def make_tables(
    encoders: OnlineEmbeddings,
    families: dict[str, Family],
    rows: datasets.Dataset,
    reader: SampleReader,
    captions: list[str],
    num_workers: int,
) -> list[Table]:
    """Make the tables of images and captions. `num_workers` processes read the images."""
    data, device = ImageTextDataset(rows, reader), encoders.space.vae.device

    @torch.no_grad()
    def images(batches: list[range]) -> Iterator[dict[str, Tensor]]:
        # The row of an unusable image has the values of its replacement. Training reads the replacement by its own id.
        keys = [[SampleKey(0, i, i) for i in batch] for batch in batches]
        options = {
            "collate_fn": collate,
            "num_workers": num_workers,
            "worker_init_fn": ignore_interrupt,
            "generator": torch.Generator(),  # otherwise computing a cache would change the initialization of the heads
        }
        for ids, loaded in zip(batches, read_batches(DataLoader(data, batch_sampler=keys, **options))):
            x0, ids = loaded["pixels"].to(device), torch.tensor(ids)
            mean, std = encoders.latents(x0, ids)
            c = encoders.c_img(x0, ids)
            yield {"mean": mean, "std": std} | ({} if c is None else {"c": c})

    @torch.no_grad()
    def texts(batches: list[range]) -> Iterator[dict[str, Tensor]]:
        for batch in batches:
            words = captions[batch.start : batch.stop]
            found = {
                f"{name}.{key}": value
                for name, family in families.items()
                for key, value in encoders.captions(family, words).items()
            }
            c = encoders.c_text(words)
            yield found | ({} if c is None else {"c": c})

    return [Table("images", len(rows), images), Table("captions", len(captions), texts)]


def all_captions(rows: datasets.Dataset, reader: SampleReader) -> Iterator[str]:
    """Yield every caption that a sample may have."""
    for cell in rows[reader.caption_column]:
        yield from caption_options(cell)


def write_cache(
    folder: Path, fingerprint: dict, captions: list[str], tables: list[Table], accelerator: Accelerator, dtype: type
) -> None:
    """Compute everything that is not in `folder` yet, and finally rename the fingerprint to its final name.

    Raises:
        CacheError: the folder cannot be written to, or its disk is full; raised in every process.
    """
    unfinished = folder / UNFINISHED
    on_main_process(accelerator, lambda: _begin(folder, unfinished, fingerprint, captions, tables))
    for table in tables:
        _fill(folder / table.name, table, accelerator, dtype)
    if accelerator.is_main_process:
        os.replace(unfinished, folder / FINGERPRINT)
        sync(folder)
    accelerator.wait_for_everyone()


def read_fingerprint(path: Path) -> dict | None:
    """Read a fingerprint; None if the file does not exist or was not written by this module."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() >= MARKS else None


def check_cache_folder(folder: str | Path) -> None:
    """Refuse a folder that contains files which this program did not write. Nothing is changed.

    The folder must be new or empty, or contain a fingerprint, which is the first file of a cache to be written.

    Raises:
        OptionError: the folder is a file, or it is not empty and not a cache.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"--cache_dir_latents got {str(folder)!r}: this is a file; give a folder")
    if any(read_fingerprint(folder / name) is not None for name in (FINGERPRINT, UNFINISHED)):
        return
    # Files that remain from a run that was killed before the fingerprint was written.
    harmless = {LOCK, f"{UNFINISHED}.tmp"}
    found = sorted({path.name for path in folder.iterdir()} - harmless) if folder.is_dir() else []
    if found:
        raise OptionError(
            f"--cache_dir_latents got {str(folder)!r}, which is not empty and not a cache ({', '.join(found[:3])}"
            f"{', ...' * (len(found) > 3)}); nothing in it was changed. Give an empty or a new folder"
        )


def _begin(folder: Path, unfinished: Path, fingerprint: dict, captions: list[str], tables: list[Table]) -> None:
    """Write the fingerprint and make the folders of the tables, unless a previous run has done so."""
    check_cache_folder(folder)
    found = read_fingerprint(unfinished)
    logger.info(
        "%s the cache of %d images and %d captions in %s",
        "Continuing" if found == fingerprint else "Writing", tables[0].count, len(captions), folder,
    )  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if found is None:
            replace_text(unfinished, json.dumps(fingerprint, indent=2, ensure_ascii=False))
        replace_text(folder / "captions.json", json.dumps(captions, ensure_ascii=False))
        for table in tables:
            (folder / table.name).mkdir(exist_ok=True)
    except OSError as error:
        raise CacheError(f"--cache_dir_latents got {str(folder)!r}, which cannot be written to: {error}") from error


def _create(folder: Path, table: Table, dtype: type) -> None:
    """Allocate the disk space of a table that is new, or that an earlier version started without checksums."""
    progress = folder / PROGRESS
    if progress.is_file() and (folder / CHECKSUMS).is_dir():
        return
    [first] = table.encode([range(1)])  # the first row gives the shapes of the arrays
    for name, value in first.items():
        create_array(folder / f"{name}.npy", dtype, (table.count, *value.shape[1:]))
    created = progress.with_suffix(".new")
    created.write_bytes(bytes(len(table.batches())))
    sync(created)
    os.replace(created, progress)


def _fill(folder: Path, table: Table, accelerator: Accelerator, dtype: type) -> None:
    on_main_process(accelerator, lambda: _create(folder, table, dtype))
    batches, progress = table.batches(), folder / PROGRESS
    arrays = {path.stem: CheckedArray(path) for path in folder.glob("*.npy")}
    done = progress.read_bytes()
    mine = [i for i in range(accelerator.process_index, len(batches), accelerator.num_processes) if not done[i]]
    made = table.encode([batches[i] for i in mine])
    with open(progress, "r+b", buffering=0) as file:
        for i, values in zip(tqdm(mine, f"cache of {table.name}", disable=not accelerator.is_local_main_process), made):
            for name, value in values.items():
                arrays[name].write(batches[i].start, value.float().cpu().numpy().astype(dtype))
            os.pwrite(file.fileno(), b"\1", i)  # after the rows are on the disk
    accelerator.wait_for_everyone()

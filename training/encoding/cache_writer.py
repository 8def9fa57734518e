"""Filling the cache: each process does its share, and a run that was interrupted goes on with what is missing.

A table's rows are made `BATCH` at a time. `progress` has a byte for each such batch, set once its rows are written.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from training.checkpoints.manifest import sync, write_text
from training.data.dataset import ImageTextDataset, collate
from training.data.order import SampleKey
from training.data.reader import SampleReader, caption_options
from training.encoding.embeddings import OnlineEmbeddings
from training.models.families import Family

logger = logging.getLogger(__name__)
FINGERPRINT, PROGRESS = "fingerprint.json", "progress"
UNFINISHED = FINGERPRINT + ".part"  # its name until all is there
BATCH = 16  # images or captions encoded at a time


@dataclass(frozen=True)
class Table:
    """One folder of arrays.

    Attributes:
        count: rows.
        encode: makes, of several ranges of row numbers, the arrays' rows for each range in turn, by the arrays' names.
    """

    name: str
    count: int
    encode: Callable[[list[range]], Iterable[dict[str, Tensor]]]

    def batches(self) -> list[range]:
        """Row numbers, `BATCH` at a time."""
        return [range(start, min(start + BATCH, self.count)) for start in range(0, self.count, BATCH)]


def make_tables(
    encoders: OnlineEmbeddings,
    families: dict[str, Family],
    rows: datasets.Dataset,
    reader: SampleReader,
    captions: list[str],
    num_workers: int,
) -> list[Table]:
    """What is to be computed of images and of captions. `num_workers` processes read the images."""
    data, device = ImageTextDataset(rows, reader), encoders.space.vae.device

    @torch.no_grad()
    def images(batches: list[range]) -> Iterator[dict[str, Tensor]]:
        # An unusable image's row is what its replacement has: training asks for the replacement by its own id.
        keys = [[SampleKey(0, i, i) for i in batch] for batch in batches]
        options = {
            "collate_fn": collate,
            "num_workers": num_workers,
            "generator": torch.Generator(),  # else the heads would start elsewhere where a cache was made
        }
        for ids, loaded in zip(batches, DataLoader(data, batch_sampler=keys, **options)):
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
    """Every caption that a sample may be given."""
    for cell in rows[reader.caption_column]:
        yield from caption_options(cell)


def write_cache(
    folder: Path, fingerprint: dict, captions: list[str], tables: list[Table], accelerator: Accelerator, dtype: type
) -> None:
    """Compute all that is not in `folder` yet, and last give the fingerprint its name."""
    unfinished = folder / UNFINISHED
    if accelerator.is_main_process:
        _begin(folder, unfinished, fingerprint, captions, tables)
    for table in tables:
        _fill(folder / table.name, table, accelerator, dtype)
    if accelerator.is_main_process:
        os.replace(unfinished, folder / FINGERPRINT)
        sync(folder)
    accelerator.wait_for_everyone()


def read_fingerprint(path: Path) -> dict | None:
    """What was written there; None where there is nothing, or it was cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _begin(folder: Path, unfinished: Path, fingerprint: dict, captions: list[str], tables: list[Table]) -> None:
    """Make room for the tables, unless a part of this cache lies there."""
    is_same = read_fingerprint(unfinished) == fingerprint
    logger.info(
        "%s the cache of %d images and %d captions in %s",
        "Going on with" if is_same else "Writing", tables[0].count, len(captions), folder,
    )  # fmt: skip
    if not is_same:
        for table in tables:
            shutil.rmtree(folder / table.name, ignore_errors=True)
            (folder / table.name).mkdir(parents=True)
        write_text(folder / "captions.json", json.dumps(captions, ensure_ascii=False))
        write_text(unfinished, json.dumps(fingerprint, indent=2, ensure_ascii=False))


def _fill(folder: Path, table: Table, accelerator: Accelerator, dtype: type) -> None:
    batches, progress = table.batches(), folder / PROGRESS
    if accelerator.is_main_process and not progress.is_file():
        [first] = table.encode([range(1)])  # the first row says the arrays' shapes
        for name, value in first.items():
            shape = (table.count, *value.shape[1:])
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape).flush()
        created = progress.with_suffix(".new")
        created.write_bytes(bytes(len(batches)))
        os.replace(created, progress)
    accelerator.wait_for_everyone()
    arrays = {path.stem: np.load(path, mmap_mode="r+") for path in folder.glob("*.npy")}
    done = np.memmap(progress, np.uint8, "r+")
    mine = [i for i in range(accelerator.process_index, len(batches), accelerator.num_processes) if not done[i]]
    made = table.encode([batches[i] for i in mine])
    for i, values in zip(tqdm(mine, f"cache of {table.name}", disable=not accelerator.is_local_main_process), made):
        for name, value in values.items():
            arrays[name][batches[i].start : batches[i].stop] = value.float().cpu().numpy().astype(dtype)
            arrays[name].flush()
        done[i] = 1
        done.flush()
    accelerator.wait_for_everyone()

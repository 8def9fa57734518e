"""Latents, caption embeddings, c_text and c_img of the whole set on disk, so that no encoder runs while training.

    DIR/images/mean.npy, std.npy, c_img.npy       (N, ...) by sample id
    DIR/captions/student.encoder_hidden_states.npy, ..., c_text.npy   (M, ...)
    DIR/captions.json                             the M captions
    DIR/fingerprint.json                          what it was made with; written last

Arrays are memory-mapped: a batch reads its own rows, and the set may be larger than memory.
"""

import argparse
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from .arguments import ArgumentError
from .data import ImageTextDataset
from .embeddings import OnlineEmbeddings
from .families import Family
from .fingerprint import difference, model_fingerprint
from .manifest import write_text
from .resolve import HALF, guiding_prompts
from .sampler import SampleKey
from .samples import SampleReader, caption_options

logger = logging.getLogger(__name__)
FINGERPRINT = "fingerprint.json"
BATCH = 16  # images or captions encoded at a time


@dataclass(frozen=True)
class CachedEmbeddings:
    """`training.embeddings.Embeddings` read from a folder, on `device` in float32."""

    images: dict[str, np.memmap]
    texts: dict[str, np.memmap]
    rows: dict[str, int]  # of each caption in `texts`
    families: dict[int, str]  # id of a family: its name in `texts`
    device: torch.device

    @property
    def condition_dim(self) -> int:
        """See `Embeddings`."""
        return sum(table["c"].shape[1] for table in (self.images, self.texts) if "c" in table)

    def latents(self, x0: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """See `Embeddings`."""
        return self._read(self.images["mean"], ids.tolist()), self._read(self.images["std"], ids.tolist())

    def captions(self, family: Family, captions: Sequence[str]) -> dict[str, Tensor]:
        """See `Embeddings`."""
        rows, prefix = [self.rows[caption] for caption in captions], self.families[id(family)] + "."
        return {
            name.removeprefix(prefix): self._read(array, rows)
            for name, array in self.texts.items()
            if name.startswith(prefix)
        }

    def c_text(self, captions: Sequence[str]) -> Tensor | None:
        """See `Embeddings`."""
        return self._read(self.texts["c"], [self.rows[c] for c in captions]) if "c" in self.texts else None

    def c_img(self, x0: Tensor, ids: Tensor) -> Tensor | None:
        """See `Embeddings`."""
        return self._read(self.images["c"], ids.tolist()) if "c" in self.images else None

    def _read(self, array: np.memmap, rows: list[int]) -> Tensor:
        return torch.from_numpy(np.stack([array[row] for row in rows])).to(self.device, torch.float32)


def open_cache(
    args: argparse.Namespace,
    accelerator: Accelerator,
    rows: datasets.Dataset,
    reader: SampleReader,
    families: dict[str, Family],
    fingerprint: dict,
    make_encoders: Callable[[], OnlineEmbeddings],
) -> CachedEmbeddings:
    """The cache in `--cache_dir_latents`; made first where there is none yet, each process doing its share.

    Args:
        families: by name, "student" and, where it is another, "teacher"; their weights are loaded.
        fingerprint: of `cache_fingerprint`.
        make_encoders: called only if something is to be computed.

    Raises:
        ArgumentError: the folder holds a cache of something else.
    """
    folder, prompts = Path(args.cache_dir_latents), fingerprint["prompts"]
    if not is_there(args, fingerprint):
        dtype = np.float16 if accelerator.mixed_precision in HALF else np.float32
        _write(folder, fingerprint, accelerator, rows, reader, families, prompts, make_encoders(), dtype)
    captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    images, texts = (
        {path.stem: np.load(path, mmap_mode="r") for path in sorted((folder / part).glob("*.npy"))}
        for part in ("images", "captions")
    )
    names = {id(family): name for name, family in families.items()}
    return CachedEmbeddings(images, texts, {c: i for i, c in enumerate(captions)}, names, accelerator.device)


def cache_fingerprint(
    args: argparse.Namespace,
    accelerator: Accelerator,
    rows: datasets.Dataset,
    families: dict[str, Family],
) -> dict:
    """What decides the numbers in the cache. Needs no weights."""
    found = {
        "data": rows._fingerprint,
        "samples": len(rows),
        "resolution": args.resolution,
        "precision": accelerator.mixed_precision,
        "prompts": list(guiding_prompts(args)),
        "scaling_factor": families["student"].scaling_factor,
        "vae": model_fingerprint(*families["student"].vae_place()),
    }
    for name, family in families.items():
        for part in family.text_encoders:
            place = (family.name, part, family.where["revision"], family.where["cache_dir"])
            found[f"{name}.{part}"] = model_fingerprint(*place)
    for kind in ("text", "image"):
        model = getattr(args, f"discriminator_{kind}_model")
        is_on = args.adversarial_weight > 0 and model != "none"
        found[f"c_{kind}"] = model_fingerprint(model, cache_dir=args.cache_dir) if is_on else None
    return found


def is_there(args: argparse.Namespace, fingerprint: dict) -> bool:
    """Whether a whole cache of `fingerprint` is there. Raises: ArgumentError: there is one of something else."""
    path = Path(args.cache_dir_latents, FINGERPRINT)
    if not path.is_file():
        return False
    changed = difference(json.loads(path.read_text(encoding="utf-8")), fingerprint)
    if changed:
        raise ArgumentError(
            f"--cache_dir_latents got {args.cache_dir_latents!r}, which was made with something else: {changed}. "
            "Name another folder, or remove this one"
        )
    return True


def _write(folder, fingerprint, accelerator, rows, reader, families, prompts, encoders, dtype) -> None:
    """Compute everything. Each process takes every n-th batch; the arrays' files are made by whoever has the first."""
    rank, world = accelerator.process_index, accelerator.num_processes
    captions = list(dict.fromkeys([*prompts, *all_captions(rows, reader)]))
    tables = {
        "images": (len(rows), lambda ids: _encode_images(encoders, rows, reader, ids)),
        "captions": (len(captions), lambda ids: _encode_captions(encoders, families, [captions[i] for i in ids])),
    }
    if accelerator.is_main_process:
        logger.info("Writing the cache of %d images and %d captions to %s", len(rows), len(captions), folder)
        for part in tables:
            shutil.rmtree(folder / part, ignore_errors=True)  # of a run that was stopped in the middle
            (folder / part).mkdir(parents=True)
        write_text(folder / "captions.json", json.dumps(captions, ensure_ascii=False))
    for part, (count, encode) in tables.items():
        arrays: dict[str, np.memmap] = {}
        if accelerator.is_main_process:  # the first row says the shapes
            for name, value in encode([0]).items():
                path, shape = folder / part / f"{name}.npy", (count, *value.shape[1:])
                np.lib.format.open_memmap(path, "w+", dtype, shape).flush()
        accelerator.wait_for_everyone()
        for path in (folder / part).glob("*.npy"):
            arrays[path.stem] = np.load(path, mmap_mode="r+")
        starts = range(rank * BATCH, count, world * BATCH)
        for start in tqdm(starts, desc=f"cache of {part}", disable=not accelerator.is_local_main_process):
            ids = range(start, min(start + BATCH, count))
            for name, value in encode(ids).items():
                arrays[name][start : ids.stop] = value.float().cpu().numpy().astype(dtype)
        for array in arrays.values():
            array.flush()
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_text(folder / (FINGERPRINT + ".part"), json.dumps(fingerprint, indent=2, ensure_ascii=False))
        os.replace(folder / (FINGERPRINT + ".part"), folder / FINGERPRINT)
    accelerator.wait_for_everyone()


def all_captions(rows: datasets.Dataset, reader: SampleReader) -> Iterator[str]:
    """Every caption that a sample may be given."""
    for cell in rows[reader.caption_column]:
        yield from caption_options(cell)


@torch.no_grad()
def _encode_images(encoders: OnlineEmbeddings, rows, reader: SampleReader, ids: Sequence[int]) -> dict[str, Tensor]:
    """An unusable image's row is what its replacement has: training asks for the replacement by its own id."""
    data = ImageTextDataset(rows, reader)
    x0 = torch.stack([data[SampleKey(0, i, i)]["pixels"] for i in ids]).to(encoders.space.vae.device)
    mean, std = encoders.latents(x0, torch.tensor(list(ids)))
    c = encoders.c_img(x0, torch.tensor(list(ids)))
    return {"mean": mean, "std": std} | ({} if c is None else {"c": c})


@torch.no_grad()
def _encode_captions(encoders: OnlineEmbeddings, families: dict[str, Family], captions: list[str]) -> dict[str, Tensor]:
    found = {
        f"{name}.{key}": value
        for name, family in families.items()
        for key, value in encoders.captions(family, captions).items()
    }
    c = encoders.c_text(captions)
    return found | ({} if c is None else {"c": c})

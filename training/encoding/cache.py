"""Latents, caption embeddings, c_text and c_img of the whole set on disk, so that no encoder runs while training.

    DIR/images/mean.npy, std.npy, c_img.npy       (N, ...) by sample id
    DIR/captions/student.encoder_hidden_states.npy, ..., c_text.npy   (M, ...)
    DIR/images/checksums/, captions/checksums/    of each row, by the arrays' names
    DIR/captions.json                             the M captions
    DIR/fingerprint.json                          what it was made with; has its name only when all is there

Arrays are memory-mapped: a batch reads its own rows, and the set may be larger than memory. See `cache_arrays`.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from distillation.latents import LatentSpace
from training.checkpoints.folder_lock import lock_folder_of_run
from training.data.fingerprint import dataset_fingerprint
from training.data.reader import SampleReader
from training.data.sources import Rows
from training.encoding.cache_arrays import CacheError, CheckedArray, check_small_caches
from training.encoding.cache_writer import (
    FINGERPRINT,
    UNFINISHED,
    all_captions,
    check_cache_folder,
    make_tables,
    read_fingerprint,
    write_cache,
)
from training.encoding.embeddings import Embeddings, OnlineEmbeddings
from training.encoding.fingerprint import difference, model_fingerprint
from training.errors import OptionError
from training.models.families import Family
from training.models.networks import load_conditions
from training.options.derived import HALF, guiding_prompts
from training.options.options import Options
from training.processes.main_process import on_main_process

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedEmbeddings:
    """`training.encoding.embeddings.Embeddings` read from a folder, on `device` in float32."""

    images: dict[str, CheckedArray]
    texts: dict[str, CheckedArray]
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

    def _read(self, array: CheckedArray, rows: list[int]) -> Tensor:
        return torch.from_numpy(array.read(rows)).to(self.device, torch.float32)


def open_embeddings(
    options: Options,
    accelerator: Accelerator,
    rows: Rows,
    reader: SampleReader,
    student: Family,
    teacher: Family,
    latents: LatentSpace,
) -> Embeddings:
    """The encoders of a run, or with `--cache_dir_latents` the cache in their place.

    Raises:
        UserError: an encoder cannot be loaded, or the cache not be used; see `open_cache`.
    """

    def encoders() -> OnlineEmbeddings:
        return OnlineEmbeddings(latents, *load_conditions(options, accelerator))

    if options.hardware.cache_dir_latents is None:
        return encoders()
    families = {"student": student} | ({} if teacher is student else {"teacher": teacher})
    finite = cast(datasets.Dataset, rows)  # `refuse` lets no stream have a cache
    fingerprint = cache_fingerprint(options, accelerator, finite, families)
    embeddings = open_cache(options, accelerator, finite, reader, families, fingerprint, encoders)
    for family in families.values():
        family.move_text_encoders(torch.device("cpu"))
    return embeddings


def check_cache(options: Options, accelerator: Accelerator, rows: Rows, student: Family, teacher: Family):
    """Refuse a cache of something else before any weight is loaded.

    Raises:
        OptionError: the folder holds a cache of something else, or something that is no cache.
    """
    if options.hardware.cache_dir_latents is not None:
        families = {"student": student} | ({} if teacher is student else {"teacher": teacher})
        fingerprint = cache_fingerprint(options, accelerator, cast(datasets.Dataset, rows), families)
        on_main_process(accelerator, lambda: is_there(options, fingerprint))


def open_cache(
    options: Options,
    accelerator: Accelerator,
    rows: datasets.Dataset,
    reader: SampleReader,
    families: dict[str, Family],
    fingerprint: dict,
    make_encoders: Callable[[], OnlineEmbeddings],
) -> CachedEmbeddings:
    """The cache in `--cache_dir_latents`; made first where there is none yet, or finished where it was interrupted.

    Args:
        families: by name, "student" and, where it is another, "teacher"; their weights are loaded.
        fingerprint: of `cache_fingerprint`.
        make_encoders: called only if something is to be computed.

    Raises:
        OptionError: the folder holds a cache of something else, or something that is no cache.
        FolderInUse: another run is making this cache.
        CacheError: the cache is damaged, or cannot be written.
    """
    folder = _folder(options)
    if not on_main_process(accelerator, lambda: is_there(options, fingerprint)):
        with lock_folder_of_run(accelerator, folder, "--cache_dir_latents"):
            # Another run may have finished it while this one waited for its networks to load.
            if not on_main_process(accelerator, lambda: is_there(options, fingerprint)):
                captions = list(dict.fromkeys([*fingerprint["prompts"], *all_captions(rows, reader)]))
                tables = make_tables(
                    make_encoders(), families, rows, reader, captions, options.data.dataloader_num_workers
                )
                dtype = np.float16 if accelerator.mixed_precision in HALF else np.float32
                write_cache(folder, fingerprint, captions, tables, accelerator, dtype)
    return _read_cache(folder, families, accelerator)


def _read_cache(folder: Path, families: dict[str, Family], accelerator: Accelerator) -> CachedEmbeddings:
    """The finished cache in `folder`, checked."""
    try:
        captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
        rows = {caption: i for i, caption in enumerate(captions)}
    except (OSError, ValueError, TypeError) as error:
        raise CacheError(
            f"--cache_dir_latents got {str(folder)!r}: captions.json is damaged: {error}. Remove the folder, and the "
            "cache is made anew"
        ) from error
    images, texts = (
        {path.stem: CheckedArray(path) for path in sorted((folder / part).glob("*.npy"))}
        for part in ("images", "captions")
    )
    if any(array.shape[0] != len(rows) for array in texts.values()):
        raise CacheError(
            f"--cache_dir_latents got {str(folder)!r}: captions.json has {len(rows)} captions, the arrays another "
            "number. Remove the folder, and the cache is made anew"
        )
    arrays = [*images.values(), *texts.values()]
    if any(array.sums is None for array in arrays):
        logger.warning("%s was made by an earlier version, without checksums: damage to it cannot be seen", folder)
    on_main_process(accelerator, lambda: check_small_caches(arrays))
    names = {id(family): name for name, family in families.items()}
    return CachedEmbeddings(images, texts, rows, names, accelerator.device)


def cache_fingerprint(
    options: Options,
    accelerator: Accelerator,
    rows: datasets.Dataset,
    families: dict[str, Family],
) -> dict:
    """What decides the numbers in the cache. Needs no weights."""
    found = {
        "data": dataset_fingerprint(rows),
        "samples": len(rows),
        "resolution": options.data.resolution,
        "precision": accelerator.mixed_precision,
        "prompts": list(guiding_prompts(options)),
        "scaling_factor": families["student"].scaling_factor,
        "vae": model_fingerprint(*families["student"].vae_place()),
    }
    for name, family in families.items():
        for part in family.text_encoders:
            place = (family.name, part, family.where["revision"], family.where["cache_dir"])
            found[f"{name}.{part}"] = model_fingerprint(*place)
    for kind in ("text", "image"):
        model = getattr(options.discriminator, f"discriminator_{kind}_model")
        is_on = options.method.adversarial_weight > 0 and model != "none"
        revision = getattr(options.discriminator, f"discriminator_{kind}_model_revision")
        found[f"c_{kind}"] = model_fingerprint(model, "", revision, options.models.cache_dir) if is_on else None
    return found


def _folder(options: Options) -> Path:
    """The folder of `--cache_dir_latents`, which is given."""
    assert options.hardware.cache_dir_latents is not None
    return Path(options.hardware.cache_dir_latents)


def is_there(options: Options, fingerprint: dict) -> bool:
    """Whether a whole cache of `fingerprint` is there.

    Raises:
        OptionError: there is one of something else, or a part of one: it may have taken hours. Or the folder holds
            something that is no cache.
    """
    folder = _folder(options)
    check_cache_folder(folder)
    for path in (folder / FINGERPRINT, folder / UNFINISHED):
        found = read_fingerprint(path)
        if found is not None and (changed := difference(found, fingerprint)):
            raise OptionError(
                f"--cache_dir_latents got {str(folder)!r}, which was made with something else: {changed}. "
                "Name another folder, or remove this one"
            )
    return read_fingerprint(folder / FINGERPRINT) == fingerprint

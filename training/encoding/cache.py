"""Disk cache of the latents, caption embeddings, c_text and c_img of a data set; no encoder runs while training.

    DIR/images/mean.npy, std.npy, c_img.npy       (N, ...) by sample id
    DIR/captions/student.encoder_hidden_states.npy, ..., c_text.npy   (M, ...)
    DIR/images/checksums/, captions/checksums/    checksums of each row, in files named like the arrays
    DIR/captions.json                             the M captions
    DIR/fingerprint.json                          data, models and options of the cache; only exists when it is complete

Arrays are memory-mapped: a batch reads only its own rows, and the cache may be larger than memory. See `cache_arrays`.
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
from training.encoding.pooled import make_conditions
from training.errors import OptionError
from training.models.families import Family
from training.options.derived import HALF, guiding_prompts, uses_latent_discriminator
from training.options.method import NONE
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
    """Make the embeddings of a run: its encoders, or with `--cache_dir_latents` the cache.

    Raises:
        UserError: an encoder cannot be loaded, or the cache cannot be used; see `open_cache`.
    """

    def encoders() -> OnlineEmbeddings:
        return OnlineEmbeddings(latents, *make_conditions(options, accelerator, teacher))

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
    """Refuse a cache of other data, models or options before any weight is loaded.

    Raises:
        OptionError: the folder contains such a cache, or files that are not a cache.
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
    """Open the cache in `--cache_dir_latents`. A missing or interrupted cache is computed first.

    Args:
        families: model families with loaded weights, "student" and, if it is another one, "teacher".
        fingerprint: fingerprint from `cache_fingerprint`.
        make_encoders: makes the encoders; only called if something has to be computed.

    Raises:
        OptionError: the folder contains a cache of other data, models or options, or files that are not a cache.
        FolderInUse: another run is computing this cache.
        CacheError: the cache is damaged or cannot be written.
    """
    folder = _folder(options)
    if not on_main_process(accelerator, lambda: is_there(options, fingerprint)):
        with lock_folder_of_run(accelerator, folder, "--cache_dir_latents"):
            # Another run may have finished the cache while the networks of this one were loading.
            if not on_main_process(accelerator, lambda: is_there(options, fingerprint)):
                captions = list(dict.fromkeys([*fingerprint["prompts"], *all_captions(rows, reader)]))
                tables = make_tables(
                    make_encoders(), families, rows, reader, captions, options.data.dataloader_num_workers
                )
                dtype = np.float16 if accelerator.mixed_precision in HALF else np.float32
                write_cache(folder, fingerprint, captions, tables, accelerator, dtype)
    return _read_cache(folder, families, accelerator)


def _read_cache(folder: Path, families: dict[str, Family], accelerator: Accelerator) -> CachedEmbeddings:
    """Read and check the finished cache in `folder`."""
    try:
        captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
        rows = {caption: i for i, caption in enumerate(captions)}
    except (OSError, ValueError, TypeError) as error:
        raise CacheError(
            f"--cache_dir_latents got {str(folder)!r}: captions.json is damaged: {error}. Remove the folder; the cache "
            "will be computed again"
        ) from error
    images, texts = (
        {path.stem: CheckedArray(path) for path in sorted((folder / part).glob("*.npy"))}
        for part in ("images", "captions")
    )
    if any(array.shape[0] != len(rows) for array in texts.values()):
        raise CacheError(
            f"--cache_dir_latents got {str(folder)!r}: captions.json has {len(rows)} captions, but the arrays have "
            "another number. Remove the folder; the cache will be computed again"
        )
    arrays = [*images.values(), *texts.values()]
    if any(array.sums is None for array in arrays):
        logger.warning("%s was made by an earlier version without checksums: damage cannot be detected", folder)
    on_main_process(accelerator, lambda: check_small_caches(arrays))
    names = {id(family): name for name, family in families.items()}
    return CachedEmbeddings(images, texts, rows, names, accelerator.device)


def cache_fingerprint(
    options: Options,
    accelerator: Accelerator,
    rows: datasets.Dataset,
    families: dict[str, Family],
) -> dict:
    """Everything that determines the content of the cache: data, models and options. Needs no weights."""
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
        found |= {f"{name}.{setting}": value for setting, value in family.embedding_settings.items()}
    return found | _condition_fingerprint(options)


def _condition_fingerprint(options: Options) -> dict[str, str | None]:
    """What c_text and c_img are made with; None where one is off."""
    own = options.discriminator
    if uses_latent_discriminator(options):
        pooled = None if own.discriminator_text_model == NONE else "the teacher's pooled caption"
        return {"c_text": pooled, "c_image": None}
    found: dict[str, str | None] = {}
    for kind in ("text", "image"):
        model = getattr(own, f"discriminator_{kind}_model")
        is_on = options.method.adversarial_weight > 0 and model != NONE
        revision = getattr(own, f"discriminator_{kind}_model_revision")
        found[f"c_{kind}"] = model_fingerprint(model, "", revision, options.models.cache_dir) if is_on else None
    return found


def _folder(options: Options) -> Path:
    """The folder of `--cache_dir_latents`, which is given."""
    assert options.hardware.cache_dir_latents is not None
    return Path(options.hardware.cache_dir_latents)


def is_there(options: Options, fingerprint: dict) -> bool:
    """Whether a complete cache with this `fingerprint` exists.

    Raises:
        OptionError: there is a complete or partial cache with another fingerprint, which is not overwritten because it
            may have taken hours; or the folder contains files that are not a cache.
    """
    folder = _folder(options)
    check_cache_folder(folder)
    for path in (folder / FINGERPRINT, folder / UNFINISHED):
        found = read_fingerprint(path)
        if found is not None and (changed := difference(found, fingerprint)):
            raise OptionError(
                f"--cache_dir_latents got {str(folder)!r}: this cache was made with other data, models or options: "
                f"{changed}. Give another folder, or remove this one"
            )
    return read_fingerprint(folder / FINGERPRINT) == fingerprint

"""Arrays on disk that several processes fill row by row, preallocated and with a CRC-32 checksum for each row.

    mean.npy             (N, ...) in NumPy's own format
    checksums/mean.npy   (N,) uint32, the CRC-32 of each row's bytes

Rows are written with `pwrite` instead of through a memory map, and only after all disk space is allocated. A full disk
then raises an error, whereas a write through a memory map would end the process with SIGBUS.

There is one checksum per row because training reads single rows in random order, and checking a row costs less than
reading it. To check a hash of a whole file, all of it, possibly hundreds of GB, would have to be read before the first
iteration, and later damage would not be detected.
"""

import os
import zlib
from pathlib import Path

import numpy as np

from training.errors import UserError

CHECKSUMS = "checksums"
# Caches up to this size are checked completely when they are opened, which takes a few seconds and finds damage before
# the networks are loaded. In larger caches, each row is checked when it is read.
CHECKED_WHOLE = 2 << 30


class CacheError(UserError):
    """The cache cannot be written, or it is damaged."""


def create_array(path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """Create an array of zeros and its checksums, and allocate their disk space.

    Raises:
        CacheError: there is not enough disk space, or the folder cannot be written to.
    """
    try:
        (path.parent / CHECKSUMS).mkdir(exist_ok=True)
        _allocate(path, dtype, shape)
        _allocate(path.parent / CHECKSUMS / path.name, np.uint32, shape[:1])
    except OSError as error:
        gib = np.dtype(dtype).itemsize * float(np.prod(shape, dtype=np.float64)) / 2**30
        raise CacheError(
            f"--cache_dir_latents: cannot allocate {path}, which takes {gib:.3g} GiB: {error}. Free disk space, or "
            "give a folder on another disk"
        ) from error


def _allocate(path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)  # writes the header and makes a sparse file
    header = array.offset
    del array
    with open(path, "r+b", buffering=0) as file:
        left = os.fstat(file.fileno()).st_size - header
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), header, max(1, left))
        else:  # macOS
            file.seek(header)
            while left > 0:
                left -= file.write(bytes(min(left, 1 << 22)))
        os.fsync(file.fileno())


class CheckedArray:
    """An array made by `create_array`. Reading checks the checksums of the rows, and writing updates them.

    Args:
        path: path of the array.

    Raises:
        CacheError: a file is missing or shorter than its header says.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.rows = np.load(path, mmap_mode="r")
            sums = path.parent / CHECKSUMS / path.name
            # A cache of an earlier version has no checksums.
            self.sums = np.load(sums, mmap_mode="r") if (path.parent / CHECKSUMS).is_dir() else None
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(str(error)) from error
        if self.sums is not None and self.sums.shape != self.rows.shape[:1]:
            raise self._damaged("the number of checksums differs from the number of rows")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape `(N, ...)`."""
        return self.rows.shape

    def read(self, numbers: list[int]) -> np.ndarray:
        """Read and check the rows with these numbers. Returns `(B, ...)`.

        Raises:
            CacheError: a row does not match its checksum.
        """
        found = np.stack([self.rows[number] for number in numbers])
        if self.sums is not None:
            for number, row in zip(numbers, found):
                if zlib.crc32(row) != self.sums[number]:
                    raise self._damaged(f"row {number} does not match its checksum")
        return found

    def write(self, first: int, values: np.ndarray) -> None:
        """Write `values` as the rows from `first` on, with their checksums, and flush them to the disk.

        Raises:
            CacheError: the file cannot be written.
        """
        values = np.ascontiguousarray(values, self.rows.dtype)
        sums = np.array([zlib.crc32(row) for row in values], np.uint32)
        try:
            _put(self.path, self.rows, first, values)
            if self.sums is not None:
                _put(self.path.parent / CHECKSUMS / self.path.name, self.sums, first, sums)
        except OSError as error:
            raise CacheError(f"--cache_dir_latents: {self.path} cannot be written: {error}") from error

    def check_whole(self) -> None:
        """Read and check every row, a few at a time."""
        for first in range(0, len(self.rows), 64):
            self.read(list(range(first, min(first + 64, len(self.rows)))))

    def _damaged(self, what: str) -> CacheError:
        folder = self.path.parent.parent
        return CacheError(
            f"--cache_dir_latents got {str(folder)!r}: {self.path} is damaged: {what}. Remove the folder; the cache "
            "will be computed again"
        )


def _put(path: Path, array: np.memmap, first: int, values: np.ndarray) -> None:
    """Write rows into the file of `array` and flush them to the disk."""
    data, place = memoryview(values.tobytes()), array.offset + first * array[:1].nbytes
    with open(path, "r+b", buffering=0) as file:
        while data:
            written = os.pwrite(file.fileno(), data, place)
            data, place = data[written:], place + written
        os.fsync(file.fileno())


def check_small_caches(arrays: list[CheckedArray]) -> None:
    """Check all rows of a cache that is not larger than `CHECKED_WHOLE`.

    Raises:
        CacheError: a row does not match its checksum.
    """
    if sum(array.rows.nbytes for array in arrays) <= CHECKED_WHOLE:
        for array in arrays:
            array.check_whole()

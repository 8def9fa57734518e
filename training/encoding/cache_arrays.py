"""Arrays on disk, filled row by row by several processes: room taken beforehand, a CRC-32 beside each row.

    mean.npy             (N, ...) in NumPy's own format
    checksums/mean.npy   (N,) uint32, the CRC-32 of each row's bytes

Rows are written with `pwrite`, not through a memory map, and only after all the room has been allocated: a full disk
is then an error of the call, where a memory map would end the process with SIGBUS.

Why a checksum a row: training reads single rows in random order, and checking one costs less than reading it. A sum of
a whole file could only be checked by reading all of it, hundreds of GB of a large set, before the first iteration; and
it would miss what is damaged later.
"""

import os
import zlib
from pathlib import Path

import numpy as np

from training.errors import UserError

CHECKSUMS = "checksums"
# Caches up to this size are read whole when they are opened, which takes a few seconds and finds damage before the
# networks load. Of larger ones every row is checked when it is read.
CHECKED_WHOLE = 2 << 30


class CacheError(UserError):
    """The cache cannot be written, or is not what was written."""


def create_array(path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """Make an array of zeros and its checksums, with all their room on the disk taken.

    Raises:
        CacheError: there is no room, or the folder cannot be written to.
    """
    try:
        (path.parent / CHECKSUMS).mkdir(exist_ok=True)
        _allocate(path, dtype, shape)
        _allocate(path.parent / CHECKSUMS / path.name, np.uint32, shape[:1])
    except OSError as error:
        gib = np.dtype(dtype).itemsize * float(np.prod(shape, dtype=np.float64)) / 2**30
        raise CacheError(
            f"--cache_dir_latents: no room for {path}, which takes {gib:.3g} GiB: {error}. Make room, or name a folder "
            "on another disk"
        ) from error


def _allocate(path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)  # writes the header and leaves a hole after it
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
    """An array that `create_array` made. Reads check the rows; writes come with their checksums.

    Args:
        path: of the array.

    Raises:
        CacheError: a file is missing or shorter than its header says.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.rows = np.load(path, mmap_mode="r")
            sums = path.parent / CHECKSUMS / path.name
            # A cache of an earlier version has none.
            self.sums = np.load(sums, mmap_mode="r") if (path.parent / CHECKSUMS).is_dir() else None
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(str(error)) from error
        if self.sums is not None and self.sums.shape != self.rows.shape[:1]:
            raise self._damaged("its checksums are of another number of rows")

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, ...)`."""
        return self.rows.shape

    def read(self, numbers: list[int]) -> np.ndarray:
        """`(B, ...)`: the rows of these numbers.

        Raises:
            CacheError: the bytes of one are not what was written.
        """
        found = np.stack([self.rows[number] for number in numbers])
        if self.sums is not None:
            for number, row in zip(numbers, found):
                if zlib.crc32(row) != self.sums[number]:
                    raise self._damaged(f"row {number} is not what was written")
        return found

    def write(self, first: int, values: np.ndarray) -> None:
        """Put rows `first` and after in their place, and on the disk.

        Raises:
            CacheError: the disk refuses them.
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
            f"--cache_dir_latents got {str(folder)!r}: {self.path} is damaged: {what}. Remove the folder, and the "
            "cache is made anew"
        )


def _put(path: Path, array: np.memmap, first: int, values: np.ndarray) -> None:
    """Write rows into the file behind `array` and force them to the disk."""
    data, place = memoryview(values.tobytes()), array.offset + first * array[:1].nbytes
    with open(path, "r+b", buffering=0) as file:
        while data:
            written = os.pwrite(file.fileno(), data, place)
            data, place = data[written:], place + written
        os.fsync(file.fileno())


def check_small_caches(arrays: list[CheckedArray]) -> None:
    """Check all rows of a cache that is no larger than `CHECKED_WHOLE`.

    Raises:
        CacheError: a row is not what was written.
    """
    if sum(array.rows.nbytes for array in arrays) <= CHECKED_WHOLE:
        for array in arrays:
            array.check_whole()

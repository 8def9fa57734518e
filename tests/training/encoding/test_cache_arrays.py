"""Arrays of the cache on a disk that is full, and the checksum of every row."""

import resource
import zlib

import numpy as np
import pytest

from tests.training.checkpoints.test_store_crashes import run_forked
from training.encoding.cache_arrays import CHECKSUMS, CacheError, CheckedArray, create_array


def test_rows_come_back_and_have_their_sums(tmp_path):
    """A file that NumPy reads, all of its room taken; rows that were never written do not pass for zeros."""
    create_array(tmp_path / "large.npy", np.float16, (1 << 10, 1 << 10))
    assert (tmp_path / "large.npy").stat().st_blocks * 512 >= 2 << 20  # no hole in it
    create_array(tmp_path / "a.npy", np.float16, (5, 3, 2))
    array = CheckedArray(tmp_path / "a.npy")
    values = np.arange(12, dtype=np.float16).reshape(2, 3, 2)
    array.write(2, values)
    reopened = CheckedArray(tmp_path / "a.npy")
    assert reopened.shape == (5, 3, 2)
    assert np.array_equal(reopened.read([3, 2]), values[::-1])
    assert np.array_equal(np.load(tmp_path / "a.npy")[2:4], values)
    assert np.load(tmp_path / CHECKSUMS / "a.npy").tolist() == [0, 0, *map(zlib.crc32, values), 0]
    with pytest.raises(CacheError, match="row 4 does not match its checksum"):
        reopened.read([2, 4])


def test_disk_full(tmp_path):
    """A real limit on the size of files. The call fails in one line, before a single row has been computed."""

    def victim():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
        with pytest.raises(CacheError, match=r"cannot allocate .*a\.npy, which takes 0\.000244 GiB: .*Free disk space"):
            create_array(tmp_path / "a.npy", np.float32, (1 << 16, 1))

    assert run_forked(victim) == 0


def test_disk_full_where_room_was_not_kept(tmp_path):
    """Some file systems copy on write, and a write into room that was taken fails there: an error too, no signal."""
    create_array(tmp_path / "a.npy", np.float32, (1 << 12, 16))

    def victim():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
        array = CheckedArray(tmp_path / "a.npy")
        with pytest.raises(CacheError, match=r"a\.npy cannot be written: .*File too large"):
            array.write(1 << 11, np.ones((1 << 11, 16), np.float32))

    assert run_forked(victim) == 0


def test_missing_checksums_of_one_array(tmp_path):
    create_array(tmp_path / "a.npy", np.float32, (2, 2))
    (tmp_path / CHECKSUMS / "a.npy").unlink()
    with pytest.raises(CacheError, match=r"a\.npy is damaged: .*No such file"):
        CheckedArray(tmp_path / "a.npy")

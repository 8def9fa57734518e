"""Which files a row can make this machine read: no pipes, devices, other hosts, or files outside of given folders."""

import os
import threading
import zipfile

import datasets
import fsspec
import pytest
from huggingface_hub import constants

from tests.training.data.image_rows import picture, reader
from training.data import files
from training.data.files import read_file
from training.data.images import decode_image
from training.data.order import SampleKey
from training.data.reader import UnusableSample


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "0.png"
    path.write_bytes(picture(7))
    return path


@pytest.fixture
def opened(monkeypatch):
    """URLs that fsspec is asked to open; none of them is."""
    urls = []

    def note(url, *_, **__):
        urls.append(url)
        raise OSError("not opened in this test")

    monkeypatch.setattr(fsspec, "open", note)
    return urls


def finishes(function, seconds=20):
    """Whether `function` returns; a thread, as a blocked `open` cannot be interrupted by an exception."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def test_a_pipe_does_not_block(tmp_path):
    """open() of a pipe without a writer waits for ever."""
    os.mkfifo(tmp_path / "0.png")
    errors = []

    def read():
        try:
            read_file(str(tmp_path / "0.png"))
        except ValueError as error:
            errors.append(str(error))

    assert finishes(read)
    assert errors == ["not a regular file"]


@pytest.mark.parametrize("target", ["/dev/zero", "."])
def test_links_to_devices_and_folders_are_refused(tmp_path, target):
    """/dev/zero never ends; reading it took all memory."""
    (tmp_path / "0.png").symlink_to(target)
    with pytest.raises(ValueError, match="not a regular file"):
        read_file(str(tmp_path / "0.png"))


def test_link_to_an_image_is_followed(tmp_path, image):
    """A folder of links to another disk is a common data set."""
    (tmp_path / "link.png").symlink_to(image)
    assert read_file(str(tmp_path / "link.png")) == image.read_bytes()


def test_size_is_limited(tmp_path, monkeypatch):
    """Of files, of bytes in the row and of a member of an archive, which compresses zeros to nothing."""
    monkeypatch.setattr(files, "MAX_ENCODED_BYTES", 1000)
    monkeypatch.setattr("training.data.images.MAX_ENCODED_BYTES", 1000)
    big = tmp_path / "big.png"
    with open(big, "wb") as file:
        file.truncate(1001)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(big, "big.png")
    for path in (big, f"zip://big.png::{tmp_path}/bomb.zip"):
        with pytest.raises(ValueError, match="larger than 1000 bytes"):
            read_file(str(path), limit=1000)
    with pytest.raises(ValueError, match="larger than 1000 bytes"):
        decode_image(bytes(1001))


def test_image_in_an_archive(tmp_path, image):
    """As datasets streams zipped image folders."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(image, "0.png")
    assert read_file(f"zip://0.png::{tmp_path}/a.zip") == image.read_bytes()
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(ValueError, match="not a regular file"):
        read_file(f"zip://0.png::{tmp_path}/pipe.zip")


@pytest.mark.parametrize(
    "url",
    [
        "github://org:repo@main/0.png", "http://169.254.169.254/latest/meta-data", "https://host.test/0.png",
        "ftp://host.test/0.png", "s3://bucket/0.png", "ssh://host.test/0.png", "zip://0.png::https://host.test/0.zip",
        "simplecache::https://host.test/0.png", "zip://0.png::simplecache::https://host.test/0.zip",
        "filecache://x::hf://datasets/a/b/0.png", constants.ENDPOINT + ".host.test/0.png",
    ],
)  # fmt: skip
def test_other_schemes_and_hosts_are_refused(url, opened, monkeypatch):
    """Online, too: a row does not choose whom this machine talks to."""
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match=r"not from|a chain of URLs|No such file"):
        read_file(url)
    assert opened == []


@pytest.mark.parametrize(
    "url", ["hf://datasets/a/b@main/0.png", "zip://0.png::hf://datasets/a/b/0.zip", constants.ENDPOINT + "/datasets/x"]
)
def test_the_hub_is_read_unless_offline(url, opened, monkeypatch):
    """What datasets streams image folders of the Hub from."""
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        read_file(url)
    assert opened == []
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match="not opened in this test"):
        read_file(url)
    assert opened == [url]


def test_folders_confine_local_paths(tmp_path, image):
    """`..`, an absolute path, a neighbour whose name begins alike, and an archive elsewhere."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "1.png").write_bytes(picture(1))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(image, "0.png")
    folders = (str(tmp_path / "other"), str(folder))
    assert read_file(f"{folder}/1.png", folders) == picture(1)
    assert read_file(f"file://{folder}/../set/1.png", folders) == picture(1)
    for path in (f"{folder}/../0.png", "/etc/passwd", f"{folder}s/0.png", f"zip://0.png::{tmp_path}/a.zip", "0.png"):
        with pytest.raises(ValueError, match="outside of the data set's folder"):
            read_file(path, folders)


def test_reader_replaces_what_is_refused(tmp_path, image):
    """The reader passes its folders on, and a refusal is an unusable sample like any other."""
    row = {"image": {"bytes": None, "path": str(image)}, "text": "x"}
    assert reader()(row, SampleKey(0, 0, 0), 0)["pixels"].shape == (3, 8, 8)
    with pytest.raises(UnusableSample, match=r"0\.png: ValueError: outside of the data set's folder"):
        reader(folders=(str(tmp_path / "other"),))(row, SampleKey(0, 0, 0), 0)

"""A folder of images, and a tiny world built from it in one iteration a stage."""

import shutil
from pathlib import Path

import pytest

from tests.examples.tiny_build import run, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("source") / "images")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, folder) -> Path:
    root = tmp_path_factory.mktemp("built") / "world"
    run(root, folder)
    return root


@pytest.fixture
def tiny(pristine, tmp_path) -> Path:
    """A built world of the test's own."""
    return Path(shutil.copytree(pristine, tmp_path / "world"))

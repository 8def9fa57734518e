"""A Hub on loopback, the real client set to talk to it, and a student that was really trained (for two steps)."""

import shutil
import time
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.utils._http
import pytest

import train_add
from tests.hub.server import serve
from tests.support import tiny_world


@pytest.fixture
def hub():
    """A fresh Hub of its own port."""
    with serve() as running:
        yield running


@pytest.fixture
def client(hub, tmp_path, monkeypatch):
    """The client of this process: online, at `hub`, with its own cache, without a stored token, retrying at once."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    waited = []

    class Time:
        def __getattr__(self, name):
            return getattr(time, name)

        def sleep(self, seconds):
            waited.append(seconds)

    monkeypatch.setattr(huggingface_hub.utils._http, "time", Time())
    huggingface_hub.utils._http.close_session()
    yield waited
    huggingface_hub.utils._http.close_session()


@pytest.fixture(scope="session")
def trained(world, tmp_path_factory) -> Path:
    """The output folder of a run: the student, and beside it checkpoints, logs and validation images."""
    folder = tmp_path_factory.mktemp("run") / "my-student"
    flags = tiny_world.flags(
        world, folder, "--report_to", "tensorboard", "--checkpointing_steps", 1, "--validation_steps", 2,
        "--validation_prompts", "a handwritten one", 'a "quoted" seven',
    )  # fmt: skip
    train_add.main(flags)
    return folder


@pytest.fixture
def student(trained, tmp_path) -> Path:
    """A copy of `trained` that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "my-student"))

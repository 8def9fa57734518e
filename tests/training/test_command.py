"""The name by which a command speaks of itself."""

import pytest

from tests.packaging.requirements import read_project
from training.command import INSTALLED, command_name


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("/venv/bin/add-publish", "add-publish"),
        ("add-publish.exe", "add-publish"),
        ("/home/me/add/training/publish.py", "python -m training.publish"),
        ("train_add.py", "python -m training.publish"),
        ("-c", "python -m training.publish"),
    ],
)
def test_a_command_has_the_name_that_was_typed(monkeypatch, script, name):
    monkeypatch.setattr("sys.argv", [script, "--help"])
    assert command_name("training.publish") == name


def test_names_of_installed_commands_begin_alike():
    assert all(name.startswith(INSTALLED) for name in read_project()["scripts"])

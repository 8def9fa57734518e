"""`python -m training.publish`: everything is checked before anything is written or sent; `--dry_run`; `--measured`."""

import json

import pytest

from tests.training.publishing.folder.test_replacement import write_student
from training.publishing import command
from training.publishing.card.facts import measured_table
from training.publishing.folder.published_folder import published_files
from training.publishing.folder.verification import FILES

COMPARISON = {
    "command": "python -m evaluation compare a b",
    "figures": [{"run": "a|b", "steps": 1, "FID": 20.6}, {"run": "c", "steps": None}],
    "runs": [{"name": "a"}],
}


@pytest.fixture
def student(tmp_path):
    write_student(tmp_path / "out", 1)
    run = {"base_model": "b", "base_model_on_hub": False, "license": {}, "pipeline_class": "StableDiffusionPipeline",
           "facts": {}, "libraries": {}, "arguments": {"resolution": 32}}  # fmt: skip
    (tmp_path / "out" / "add_run.json").write_text(json.dumps(run))
    (tmp_path / "out" / "scheduler" / "scheduler_config.json").write_text("{}")
    (tmp_path / "out" / FILES).unlink()
    return tmp_path / "out"


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: pytest.fail("the Hub was asked"))


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as caught:
        command.main([str(part) for part in argv])
    assert caught.value.code != 0
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    return message


def test_dry_run(student, no_network, capsys):
    """Lists the files with their sizes, names the card, writes and sends nothing."""
    before = content(student)
    command.main([str(student), "--repo_id", "me/fox", "--dry_run", "--license", "mit"])
    shown = capsys.readouterr().out
    for name in published_files(student):
        assert f"  {name}  " in shown
    assert f"Would publish 6 files of {student} to me/fox (main):" in shown
    assert f"The card is {student / 'README.md'}. Nothing was written or sent." in shown
    assert content(student) == before


@pytest.mark.parametrize("options", [(), ("--dry_run",)])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"figures": [{"steps": 1}]}', "KeyError: 'command'"),
        ("{", "JSONDecodeError"),
        ('{"command": "x", "figures": []}', "there must be at least one row"),
        ('{"command": "x", "figures": [{"FID": {"value": 3}}]}', "'FID' must be a number or text"),
        (None, "FileNotFoundError"),
    ],
)
def test_bad_figures_are_refused_before_anything_is_written(student, tmp_path, no_network, capsys, text, why, options):
    file = tmp_path / "figures.json"
    if text is not None:
        file.write_text(text)
    before = content(student)
    message = refused(capsys, student, "--repo_id", "me/fox", "--measured", file, *options)
    assert f"--measured got {file} cannot be read (" in message
    assert why in message
    assert '{"command": "python -m ...", "figures": ' in message
    assert content(student) == before


def test_repo_id_is_checked_without_a_network(student, no_network, capsys):
    before = content(student)
    assert "--repo_id got 'a/b/c'" in refused(capsys, student, "--repo_id", "a/b/c", "--license", "mit")
    assert "--repo_id got 'me/my fox'" in refused(capsys, student, "--repo_id", "me/my fox", "--dry_run")
    assert content(student) == before


def test_damaged_student_is_refused(student, no_network, capsys):
    file = student / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "damaged or truncated" in refused(capsys, student, "--repo_id", "me/fox")
    assert "damaged or truncated" in refused(capsys, student, "--repo_id", "me/fox", "--dry_run")


def test_comparison_goes_into_the_card_and_leaves_with_the_student(student, tmp_path):
    """`comparison.json` of the evaluation, its other keys ignored; figures of one student are not the next one's."""
    (tmp_path / "comparison.json").write_text(json.dumps(COMPARISON))
    command.add_measured(student, tmp_path / "comparison.json")
    table, by = measured_table(student)
    assert by == "python -m evaluation compare a b"
    assert table.splitlines()[2:] == [r"| a\|b | 1 | 20.6 |", "| c | None | - |"]
    write_student(student, 2)
    assert measured_table(student) == ("", "")

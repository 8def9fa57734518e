"""Publishing to a Hub that accepts: what arrives, in how many commits, and what is left alone."""

import json
import shutil

import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi
from safetensors.torch import save

import train_add
from tests.hub.server import OTHER, READ, WRITE
from tests.support import tiny_world
from tests.support.runs import options_of
from training.publishing.card.card import is_untouched
from training.publishing.folder.layout import PublishError
from training.publishing.folder.verification import FILES
from training.publishing.hub.checkpoint_branch import CheckpointPusher
from training.publishing.hub.push import check_push, publish, push_published

REPO = "user/my-student"
LAYOUT = {
    "README.md",
    "samples.png",
    "model_index.json",
    "pipeline.py",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}

pytestmark = pytest.mark.usefixtures("client")


def add_on_the_hub(path: str, content: bytes, branch: str = "main") -> None:
    """Someone commits a file to the repo."""
    operation = CommitOperationAdd(path, content)
    HfApi(token=WRITE).create_commit(REPO, [operation], commit_message="by hand", revision=branch)


def test_exactly_the_layout_in_one_commit(hub, student):
    """Checkpoints, logs and validation images lie beside the model and stay there; so does the token."""
    assert {p.name for p in student.iterdir()} >= {"checkpoint-2", "logs", "validation", "add_run.json"}
    (student / "unet" / "notes.txt").write_text("mine")
    done = publish(student, REPO, token=WRITE)
    files = hub.files(REPO)
    assert files.keys() == LAYOUT == set(done.files)
    assert hub.titles(REPO) == ["initial commit", "Add a student distilled by ADD"]
    for path, data in files.items():
        assert data == (student / path).read_bytes(), path
        assert WRITE.encode() not in data
        assert str(student.parent).encode() not in data
    assert hub.store.repos[REPO].private is False
    assert done.commit == hub.store.repos[REPO].branches["main"]


def test_large_files_go_by_lfs_and_small_ones_in_the_commit(hub, student):
    publish(student, REPO, token=WRITE)
    files = hub.store.repos[REPO].files()
    assert {path for path, file in files.items() if file.lfs} >= {p for p in LAYOUT if p.endswith(".safetensors")}
    assert not files["model_index.json"].lfs
    assert len(hub.seen("^PUT /lfs/")) == len(hub.store.objects)


def test_repeat_changes_nothing_and_sends_nothing(hub, student):
    first = publish(student, REPO, token=WRITE)
    sent = len(hub.seen("^PUT"))
    again = publish(student, REPO, token=WRITE)
    assert again == first
    assert len(hub.seen("^PUT")) == sent
    assert len(hub.seen("POST .*/commit/")) == 1


def test_private_repo(hub, student):
    """Made private; a public one that exists is refused rather than filled."""
    publish(student, REPO, token=WRITE, private=True)
    assert hub.store.repos[REPO].private is True
    hub.store.repos[REPO].private = False
    commits = len(hub.titles(REPO))
    with pytest.raises(PublishError, match=r"--private got True: user/my-student already exists and is public"):
        publish(student, REPO, token=WRITE, private=True)
    assert len(hub.titles(REPO)) == commits


def test_branch(hub, student):
    """--revision pushes to a branch, made from main; main stays."""
    publish(student, REPO, token=WRITE, branch="trial/one")
    assert hub.files(REPO, "trial/one").keys() == LAYOUT
    assert hub.files(REPO) == {}


def test_files_of_an_earlier_student_go_and_others_stay(hub, student):
    """Another student's shards would be loaded in place of the new weights; the owner's own files are no concern."""
    publish(student, REPO, token=WRITE)
    stale = "unet/diffusion_pytorch_model.fp16.safetensors"
    for path in (stale, "unet/notes.txt", "comfy/model.safetensors", "assets/fox.png"):
        add_on_the_hub(path, b"old")
    (student / "vae" / "config.json").write_text((student / "vae" / "config.json").read_text() + "\n")
    (student / FILES).unlink()  # a change of the owner's own
    publish(student, REPO, token=WRITE)
    files = hub.files(REPO)
    assert files.keys() == LAYOUT | {"unet/notes.txt", "comfy/model.safetensors", "assets/fox.png"}
    assert files["vae/config.json"] == (student / "vae" / "config.json").read_bytes()


def test_card_edited_on_the_hub_is_kept(hub, student):
    """Until its replacement is asked for. An unedited one follows the run."""
    publish(student, REPO, token=WRITE)
    run = json.loads((student / "add_run.json").read_text())
    (student / "add_run.json").write_text(json.dumps(run | {"facts": {"iterations": 3}}))
    assert publish(student, REPO, token=WRITE).card_kept is False
    assert b"iterations: 3" in hub.files(REPO)["README.md"]

    edited = hub.files(REPO)["README.md"] + b"\nBy the way, I like it.\n"
    add_on_the_hub("README.md", edited)
    (student / "add_run.json").write_text(json.dumps(run | {"facts": {"iterations": 4}}))
    (student / "samples.png").write_bytes(b"new samples")
    done = publish(student, REPO, token=WRITE)
    assert done.card_kept is True
    assert hub.files(REPO)["README.md"] == edited
    assert hub.files(REPO)["samples.png"] == b"new samples"

    assert publish(student, REPO, token=WRITE, overwrite_card=True).card_kept is False
    assert is_untouched(hub.files(REPO)["README.md"].decode())
    assert b"iterations: 4" in hub.files(REPO)["README.md"]


def test_card_edited_here_is_pushed_as_it_is(hub, student):
    (student / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    publish(student, REPO, token=WRITE)
    assert hub.files(REPO)["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"
    assert publish(student, REPO, token=WRITE).card_kept is False  # the same card is no conflict


def test_card_names_the_repo(hub, student):
    publish(student, REPO, token=WRITE)
    assert b'from_pretrained("user/my-student"' in hub.files(REPO)["README.md"]


def test_lora_alone(hub, student, tmp_path):
    """A folder with adapter, card and samples, and nothing to make a full model of."""
    (tmp_path / "lora" / "scheduler").mkdir(parents=True)
    for name in ("README.md", "add_run.json", "samples.png", "scheduler/scheduler_config.json"):
        (tmp_path / "lora" / name).write_bytes((student / name).read_bytes())
    (tmp_path / "lora" / "pytorch_lora_weights.safetensors").write_bytes(save({"a": torch.ones(2)}))
    publish(tmp_path / "lora", REPO, token=WRITE)
    weights, scheduler = "pytorch_lora_weights.safetensors", "scheduler/scheduler_config.json"
    assert hub.files(REPO).keys() == {"README.md", "samples.png", weights, scheduler}
    card = hub.files(REPO)["README.md"].decode()
    assert "load_lora_weights" in card
    assert "custom_pipeline" not in card


def arguments(folder, token=WRITE, *more):
    return options_of("--pretrained_teacher_model", "x", "--output_dir", folder, "--hub_token", token, *more)


def test_push_at_the_end_of_a_run(hub, student):
    """Without --hub_model_id the repo is named after the folder, in the token owner's namespace."""
    assert push_published(arguments(student)) == REPO
    assert hub.files(REPO).keys() == LAYOUT


def test_training_with_push_to_hub(hub, world, tmp_path):
    """The script itself, from its flags to the Hub."""
    train_add.main(tiny_world.flags(world, tmp_path / "fox", "--push_to_hub", "--hub_token", WRITE,
                                    "--hub_model_id", "user/red-fox", "--checkpointing_steps", 1))  # fmt: skip
    files = hub.files("user/red-fox").keys()
    assert files == LAYOUT - {"samples.png"}
    assert len(hub.titles("user/red-fox")) == 2


def test_check_before_training(hub, tmp_path):
    """Creates the repo and learns that it can be written to; a token that cannot is refused at once."""
    folder = tmp_path / "my-student"
    assert check_push(arguments(folder, WRITE, "--hub_private_repo")) == REPO
    assert hub.titles(REPO) == ["initial commit"]
    with pytest.raises(PublishError, match=r"--push_to_hub got True, but .*: HTTP 403: .* Training was not started"):
        check_push(arguments(folder, READ))
    with pytest.raises(PublishError, match=r"HTTP 40[134]"):
        check_push(arguments(folder, OTHER, "--hub_model_id", REPO))


def test_checkpoints_go_to_a_branch_in_order(hub, student, caplog):
    """One commit a checkpoint, each the whole layout; a refused one is reported and the next goes on."""

    def broken(folder):
        raise OSError(28, "No space left on device")

    pusher = CheckpointPusher(arguments(student))

    def saving(step):
        def write(folder):
            shutil.copytree(
                student, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoint-*", "logs", ".*")
            )
            (folder / "samples.png").write_bytes(b"step %d" % step)

        return write

    pusher.push(saving(1), 1)
    pusher.push(saving(2), 2)
    pusher.close()
    assert hub.titles(REPO) == ["initial commit", "Student after 1 iterations", "Student after 2 iterations"]
    assert hub.files(REPO, "checkpoints").keys() == LAYOUT
    assert hub.files(REPO, "checkpoints")["samples.png"] == b"step 2"
    assert hub.files(REPO) == {}
    assert list(student.glob(".push-*")) == []

    hub.fail("POST .*/commit/", status=500)
    pusher = CheckpointPusher(arguments(student))
    pusher.push(broken, 2)
    pusher.push(saving(3), 3)
    pusher.push(saving(4), 4)
    pusher.close()
    assert pusher.failed == 2
    assert "iteration 2 was not pushed; training continues. [Errno 28] No space left on device" in caplog.text
    assert "iteration 3 was not pushed; training continues. HTTP 500: repeat it later" in caplog.text
    assert hub.titles(REPO)[-1] == "Student after 4 iterations"


def test_training_pushes_every_checkpoint_and_then_the_student(hub, world, tmp_path):
    """The script itself: the branch has a student of each checkpoint, main the last one, and training is as ever."""
    flags = ("--checkpointing_steps", 1, "--use_ema", "--mixed_precision", "bf16")
    train_add.main(tiny_world.flags(world, tmp_path / "alone", *flags))
    train_add.main(tiny_world.flags(world, tmp_path / "fox", *flags, "--push_to_hub", "--push_every_checkpoint",
                                    "--hub_token", WRITE, "--hub_model_id", "user/red-fox"))  # fmt: skip
    titles = hub.titles("user/red-fox")
    assert titles[:3] == ["initial commit", "Student after 1 iterations", "Student after 2 iterations"]
    assert hub.files("user/red-fox", "checkpoints").keys() == LAYOUT - {"samples.png"}
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert hub.files("user/red-fox")[weights] == hub.files("user/red-fox", "checkpoints")[weights]
    assert (tmp_path / "alone" / weights).read_bytes() == hub.files("user/red-fox")[weights]

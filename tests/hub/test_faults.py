"""Publishing to a Hub that fails: a clear message, nothing lost, nothing half done, and a repeat that succeeds."""

import re

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from tests.hub.server import DROP, LOSE, OTHER, READ, WRITE
from training.publishing.folder.layout import PublishError
from training.publishing.folder.published_folder import published_files
from training.publishing.hub import push as publishing
from training.publishing.hub.push import publish

REPO = "user/my-student"


def refused(student, *, token=WRITE, repo_id=REPO, **options) -> str:
    """The message with which publishing fails."""
    with pytest.raises(PublishError) as caught:
        publish(student, repo_id, token=token, **options)
    message = str(caught.value)
    assert token not in message
    return message


def succeeds(hub, student) -> None:
    """A repeat completes what failed."""
    assert publish(student, REPO, token=WRITE).files == published_files(student)
    assert hub.files(REPO).keys() == set(published_files(student))
    assert len(hub.titles(REPO)) == 2


def test_connection_dropped_once_in_mid_upload(hub, client, student):
    """The client sends the file again by itself."""
    hub.fail("^PUT /lfs/", status=DROP)
    succeeds(hub, student)
    assert len(client) == 1


def test_connection_dropped_for_good_in_mid_upload(hub, client, student):
    """After six attempts it is given up: named are what arrived and what is missing, and only that is sent later."""
    weights = [name for name in published_files(student) if name.endswith(".safetensors")]
    lost = HfApi.preupload_lfs_files

    def preupload(self, repo_id, additions, **options):
        if additions[0].path_in_repo == weights[1]:
            hub.fail("^PUT /lfs/", status=DROP, times=6)
        return lost(self, repo_id, additions, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HfApi, "preupload_lfs_files", preupload)
        message = refused(student)
    assert f"Already uploaded, and not sent again: {weights[0]}. " in message
    missing = re.search(r"Missing: (.*)\. Repeat with: ", message)[1].split(", ")
    assert missing == [name for name in published_files(student) if name != weights[0]]
    assert message.endswith(f"Repeat with: python -m training.publish {student} --repo_id {REPO}")
    assert hub.files(REPO) == {}
    first = hub.seen("^PUT /lfs/")[0]
    succeeds(hub, student)
    assert hub.seen("^PUT /lfs/").count(first) == 1
    assert len(client) == 5


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        ("POST /api/repos/create", 503, "HTTP 503: repeat it later"),
        ("GET /api/models/user/my-student", 502, "HTTP 502: repeat it later"),
        ("POST .*/commit/main", 500, "HTTP 500: repeat it later"),
        ("POST .*/commit/main", DROP, "(RemoteProtocolError|ReadError|WriteError): "),
        ("POST /api/validate-yaml", 500, "HTTP 500: repeat it later"),
    ],
)
def test_what_the_client_does_not_retry(hub, client, student, request_, status, says):
    """Each is reported; the repo holds nothing; the repeat completes it."""
    hub.fail(request_, status)
    assert re.search(says, refused(student))
    assert not hub.store.repos or hub.files(REPO) == {}
    succeeds(hub, student)


def test_commit_made_and_its_answer_lost(hub, client, student):
    """The message cannot know it; the repeat finds everything there and makes no second commit."""
    hub.fail("POST .*/commit/main", LOSE)
    assert "RemoteProtocolError" in refused(student)
    succeeds(hub, student)


def test_server_errors_and_rate_limits_are_waited_out(hub, client, student):
    """By the client: a 503 with its own pause, a 429 with the one that the Hub asks for."""
    hub.fail("POST .*/preupload/", 503, times=2)
    hub.fail("POST .*/info/lfs/objects/batch", 429, **{"Retry-After": "17"})
    succeeds(hub, student)
    assert 18.0 in client
    assert len(client) == 3


def test_expired_token(hub, client, student):
    """On the first push, and on a later one."""
    assert "HTTP 401: the token is missing, wrong or expired; log in with `hf auth login`" in refused(
        student, token="old"
    )
    succeeds(hub, student)
    assert "HTTP 401" in refused(student, token="old")


def test_no_token(hub, client, student):
    with pytest.raises(PublishError, match=r"HTTP 401: the token is missing"):
        publish(student, REPO)


def test_no_write_permission(hub, client, student):
    """A read-only token, another's namespace, another's repo that exists."""
    assert "HTTP 403: the token has no write access; use one with write access" in refused(student, token=READ)
    assert "HTTP 403" in refused(student, token=OTHER)
    succeeds(hub, student)
    before = hub.files(REPO)
    (student / "samples.png").write_bytes(b"changed")
    assert "HTTP 403" in refused(student, token=OTHER)
    assert "HTTP 403" in refused(student, token=READ)
    assert hub.files(REPO) == before


def test_private_repo_of_another(hub, client, student):
    """It cannot be told from one that does not exist."""
    publish(student, REPO, token=WRITE, private=True)
    assert "HTTP 403" in refused(student, token=OTHER)


def test_repo_that_exists_is_updated(hub, client, student):
    HfApi(token=WRITE).create_repo(REPO)
    succeeds(hub, student)


def test_someone_commits_in_the_meantime(hub, client, student, monkeypatch):
    """What they committed is kept: the push is refused, and can be repeated on top of it."""
    upload = publishing._upload

    def interrupted(api, *rest):
        operation = CommitOperationAdd("theirs.txt", b"theirs")
        HfApi(token=WRITE).create_commit(REPO, [operation], commit_message="theirs")
        return upload(api, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "_upload", interrupted)
        assert "HTTP 412: someone else changed the repo in the meantime" in refused(student)
    assert hub.files(REPO).keys() == {"theirs.txt"}
    publish(student, REPO, token=WRITE)
    assert hub.files(REPO).keys() == {"theirs.txt", *published_files(student)}


def test_no_server_at_all(client, student, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "ConnectError" in refused(student)


def test_unfinished_run_is_refused_before_anything_is_asked_of_the_hub(hub, client, student):
    (student / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert "Missing: unet/*.safetensors (UNet2DConditionModel)" in refused(student)
    assert hub.requests == []

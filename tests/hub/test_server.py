"""The Hub of these tests against the real client: what loading needs, and what goes wrong on the way down."""

import huggingface_hub.constants
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.server import LOSE, OTHER, READ, WRITE

REPO = "user/model"
WEIGHTS = bytes(range(256)) * 100


@pytest.fixture
def api(client, hub):
    """Logged in, with a repo of a large and a small file."""
    api = HfApi(token=WRITE)
    api.create_repo(REPO)
    additions = [CommitOperationAdd("unet/model.safetensors", WEIGHTS), CommitOperationAdd("config.json", b"{}")]
    api.create_commit(REPO, additions, commit_message="both")
    return api


def test_round_trip_of_bytes(api, hub):
    """Large files come from another host, without the token; small ones from the Hub itself."""
    with open(api.hf_hub_download(REPO, "unet/model.safetensors"), "rb") as file:
        assert file.read() == WEIGHTS
    with open(api.hf_hub_download(REPO, "config.json"), "rb") as file:
        assert file.read() == b"{}"
    (headers,) = [headers for request, headers in hub.requests if request.startswith("GET /cdn/")]
    assert headers["host"].startswith("localhost:")
    assert "authorization" not in headers


def test_interrupted_download_goes_on_where_it_stopped(api, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 128)
    hub.fail("^GET /cdn/", LOSE)
    with open(api.hf_hub_download(REPO, "unet/model.safetensors"), "rb") as file:
        assert file.read() == WEIGHTS
    ranges = [headers.get("range") for request, headers in hub.requests if request.startswith("GET /cdn/")]
    assert ranges == [None, f"bytes={len(WEIGHTS) // 2}-"]


def test_metadata(api):
    """The ETag is the content's: sha256 of a large file, git blob id of a small one."""
    large = api.get_hf_file_metadata(url=hf_hub_url(REPO, "unet/model.safetensors"))
    assert (large.size, len(large.etag)) == (len(WEIGHTS), 64)
    small = api.get_hf_file_metadata(url=hf_hub_url(REPO, "config.json"))
    assert (small.size, small.etag) == (2, "9e26dfeeb6e641a33dae4961196235bdb965b21b")  # git hash-object of {}
    assert large.commit_hash == small.commit_hash == api.model_info(REPO).sha


def test_tree_branches_and_deletion(api):
    api.create_branch(REPO, branch="old")
    api.create_commit(REPO, [CommitOperationDelete("config.json")], commit_message="less")
    assert {f.path for f in api.list_repo_tree(REPO, recursive=True)} == {".gitattributes", "unet/model.safetensors"}
    assert api.file_exists(REPO, "config.json", revision="old")
    assert {branch.name for branch in api.list_repo_refs(REPO).branches} == {"main", "old"}


def test_what_is_not_there(api):
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO, "nothing.json")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(REPO, "config.json", revision="nowhere")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("user/nothing")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)


def test_who_may_do_what(api, hub):
    hub.store.repos[REPO].private = True
    assert HfApi(token=READ).model_info(REPO).private is True
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=OTHER).model_info(REPO)
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(token=READ).create_branch(REPO, branch="mine")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(token="old").whoami()
    assert HfApi(token=WRITE).whoami()["name"] == "user"


def test_download_refused_by_a_server_that_is_not_well(api, hub):
    hub.fail("HEAD .*/resolve/", 503, times=-1)
    with pytest.raises(LocalEntryNotFoundError):
        api.hf_hub_download(REPO, "config.json")

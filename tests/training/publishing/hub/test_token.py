"""Tokens: trimmed where they come in, and never in a message."""

import pytest

from tests.support.runs import options_of
from training.publishing.folder.layout import PublishError
from training.publishing.hub.push import check_push, publish
from training.publishing.hub.token import clean_token, redact

TOKEN = "hf_abcDEF123"


@pytest.mark.parametrize("around", ["\r", "\n", " ", "\r\n", "\t"])
def test_white_space_around_a_token_goes(around):
    assert clean_token(TOKEN + around) == clean_token(around + TOKEN) == TOKEN
    assert clean_token(None) is None


@pytest.mark.parametrize("token", ["", " \n", "hf_abc DEF", "hf_abc\nDEF", "hf_ä", "hf_a\x00b"])
def test_impossible_tokens_are_refused_without_showing_them(token):
    with pytest.raises(PublishError, match="--hub_token got") as caught:
        clean_token(token)
    assert "hf_a" not in str(caught.value)


def test_redact():
    assert redact(f"Illegal header value b'Bearer {TOKEN}\\r'") == "Illegal header value b'Bearer ***'"
    assert redact(f"{{'authorization': 'bearer abc.def', 'x': '{TOKEN}'}}") == (
        "{'authorization': 'bearer ***', 'x': 'hf_***'}"
    )
    assert redact("given 'sesame\n'", "sesame\n") == "given '***'"
    assert redact("HTTP 401: the token is missing") == "HTTP 401: the token is missing"


@pytest.fixture
def failing_client(monkeypatch):
    """A client that quotes the header it was given, as HTTP libraries do; returns the tokens it was given."""
    given = []

    def create_repo(self, *_, **__):
        given.append(self.token)
        raise RuntimeError(f"Illegal header value b'Bearer {self.token}'")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    return given


def test_no_message_of_publishing_shows_a_token(failing_client, monkeypatch, tmp_path):
    """Whatever the client says, at the check before training and when publishing."""
    monkeypatch.setattr("training.publishing.hub.push.published_files", lambda *_: ["model_index.json"])
    with pytest.raises(PublishError) as published:
        publish(tmp_path, "me/fox", token=TOKEN + "\r")
    words = ("--pretrained_teacher_model", "x", "--output_dir", tmp_path, "--hub_model_id", "me/fox")
    with pytest.raises(PublishError) as checked:
        check_push(options_of(*words, "--hub_token", TOKEN + " \n"))
    assert failing_client == [TOKEN, TOKEN]
    for caught in (published, checked):
        assert TOKEN not in str(caught.value)
        assert "Bearer ***" in str(caught.value)

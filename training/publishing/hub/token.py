"""Validation of Hub tokens, and removal of tokens from messages."""

import re

from training.publishing.folder.layout import PublishError

_SECRETS = ((re.compile(r"\bhf_\w+"), "hf_***"), (re.compile(r"(?i)\b(bearer)\s+[^\s'\",;]+"), r"\1 ***"))


def clean_token(token: str | None) -> str | None:
    """Strip the white space around a token, which files and shells may add and HTTP does not allow.

    Raises:
        PublishError: the token is empty or contains invalid characters. The message does not contain the token.
    """
    if token is None:
        return None
    token = token.strip()
    if not token:
        raise PublishError("--hub_token got '': it is empty; leave it out to use the token of `hf auth login`")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise PublishError(
            "--hub_token got '***': it contains white space or other invalid characters; copy it again from "
            "https://huggingface.co/settings/tokens"
        )
    return token


def redact(text: str, token: str | None = None) -> str:
    """Mask `token`, anything that looks like a Hub token, and Bearer values in `text`."""
    if token and token.strip():
        text = text.replace(token, "***").replace(token.strip(), "***")
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text

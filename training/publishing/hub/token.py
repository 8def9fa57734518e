"""Tokens of the Hub: trimmed where they come in, and out of every message."""

import re

from training.publishing.folder.layout import PublishError

_SECRETS = ((re.compile(r"\bhf_\w+"), "hf_***"), (re.compile(r"(?i)\b(bearer)\s+[^\s'\",;]+"), r"\1 ***"))


def clean_token(token: str | None) -> str | None:
    """A token without the white space around it, which files and shells leave there and HTTP does not allow.

    Raises:
        PublishError: nothing is left, or there is something in it that no token has. The message does not show it.
    """
    if token is None:
        return None
    token = token.strip()
    if not token:
        raise PublishError("--hub_token got '': it is empty; leave it out to use the token of `hf auth login`")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise PublishError(
            "--hub_token got '***': it has white space or other characters that no token has; copy it again from "
            "https://huggingface.co/settings/tokens"
        )
    return token


def redact(text: str, token: str | None = None) -> str:
    """`text` without `token`, without anything that looks like a token of the Hub, and without Bearer values."""
    if token and token.strip():
        text = text.replace(token, "***").replace(token.strip(), "***")
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text

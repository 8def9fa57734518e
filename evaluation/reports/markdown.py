"""Markdown tables whose cells are shown as they are, whatever text they hold."""

import html
import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*\[\]|$])")


def escape_markdown(text: str) -> str:
    """`text` on one line, without a meaning in Markdown, HTML or the mathematics that GitHub renders."""
    return _SPECIAL.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose cells must be escaped already; all columns after the first `text_columns` are aligned right."""
    rule = ["---"] * text_columns + ["--:"] * (len(head) - text_columns)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body)) + "\n"

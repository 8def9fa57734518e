"""Markdown tables with escaped cells."""

import html
import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*\[\]|$])")


def escape_markdown(text: str) -> str:
    """Escape `text` for Markdown, HTML and GitHub's math, on one line."""
    return _SPECIAL.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Make a table from escaped cells. All columns after the first `text_columns` are right-aligned."""
    rule = ["---"] * text_columns + ["--:"] * (len(head) - text_columns)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body)) + "\n"

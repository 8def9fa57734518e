"""Markdown that shows text as it is, whatever the text holds: names, prompts, commands, figures from a file."""

import re
from collections.abc import Iterable, Sequence

# An underscore inside of a word has no meaning.
_SPECIAL = re.compile(r"[\\`*\[\]|$~]|(?<![^\W_])_|_(?![^\W_])")


def escape_markdown(text: str) -> str:
    """`text` on one line, without a meaning in Markdown, HTML or the mathematics that GitHub renders.

    It is for the middle of a line: a `>` or `#` at the start of one would keep its meaning.
    """
    escaped = _SPECIAL.sub(lambda found: f"\\{found[0]}", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def code_span(text: str) -> str:
    """`text` on one line as inline code."""
    text = " ".join(text.split())
    ticks = "`" * (_longest_run(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def code_block(text: str, language: str = "") -> str:
    """`text` as a fenced block, whose fence is longer than any row of backticks in it."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose cells must be escaped already; all columns after the first `text_columns` are aligned right."""
    rule = ["---"] * text_columns + ["--:"] * (len(head) - text_columns)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body)) + "\n"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)

"""Text of people and files that is put into Markdown is shown as it is."""

import re

import pytest

from training.markdown import code_block, code_span, escape_markdown, markdown_table

TEXTS = ["plain text", "$x^{$", "a_b", "_a_ __b__ (_c_)", "<b>&amp;</b>", "a | b", "[a](javascript:b)", "![a](b)",
         "~~a~~", "`a` ``b``", "**a** *b*", "a\\*b", "`", "```"]  # fmt: skip


def rendered(text):
    """What is left of inline Markdown without elements: backslashes before punctuation and entities are resolved."""
    text = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)
    return text.replace("&lt;", "<").replace("&amp;", "&")


@pytest.mark.parametrize("text", TEXTS)
def test_escaped_text_has_no_meaning_and_is_shown_as_it_is(text):
    escaped = escape_markdown(text)
    assert rendered(escaped) == text
    without_escapes = re.sub(r"\\[!-/:-@\[-`{-~]", "", escaped)
    assert not re.search(r"[\\`*\[\]|$~<]|(?<![^\W_])_|_(?![^\W_])|&(?!amp;|lt;)", without_escapes)


def test_lines_become_one():
    assert escape_markdown("a\n\n# b\r\n| c") == "a # b \\| c"


@pytest.mark.parametrize("text", [*TEXTS, "a\nb"])
def test_code_span(text):
    """The fence is no row of backticks inside, and one space beside a backtick is taken off again (CommonMark 6.1)."""
    span = code_span(text)
    ticks = re.match("`+", span)[0]
    content = span[len(ticks) : -len(ticks)]
    assert span.endswith(ticks)
    assert ticks not in re.findall("`+", content)
    shown = content[1:-1] if content.startswith(" ") and content.endswith(" ") else content
    assert shown == " ".join(text.split())


@pytest.mark.parametrize("text", ["a", "```\n# not a heading\n```", "  `````", "a `b` c"])
def test_code_block_ends_where_the_text_ends(text):
    first, *lines = code_block(text, "sh").splitlines()
    fence = re.fullmatch("(`{3,})sh", first)[1]
    closing = [number for number, line in enumerate(lines) if re.fullmatch(rf" {{0,3}}{fence}`*\s*", line)]
    assert closing == [len(lines) - 1]
    assert "\n".join(lines[:-1]) == text


def test_table():
    assert markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | --: |\n| x | 1 |\n"

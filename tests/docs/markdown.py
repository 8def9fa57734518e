"""What the documents' tests read of Markdown: fenced blocks, links, inline code and headings."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
HEADING = re.compile(r"^#+ +(.*?)\s*$", re.MULTILINE)
# Before a block whose commands are of another program, or of a machine that no test can stand for.
SKIPPED = re.compile(r"<!-- docs-check: skip, [^>]+ -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and its first line in the document."""

    language: str
    text: str
    line: int


def documents() -> list[Path]:
    """Every Markdown file of the tree, but the template of the model card, which is a test's own."""
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md")
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if not name.endswith("card/template.md") and (ROOT / name).is_file()]


def blocks(text: str) -> list[Block]:
    """The fenced blocks that are not marked to be skipped."""
    found = [match for match in FENCE.finditer(text) if not SKIPPED.search(text[: match.start()])]
    return [Block(match[1], match[2], text[: match.start()].count("\n") + 2) for match in found]


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return FENCE.sub("", text)


def links(text: str) -> list[str]:
    """Targets of links and images."""
    return LINK.findall(INLINE.sub("", prose(text)))


def inline_code(text: str) -> list[str]:
    """The texts between single backticks."""
    return INLINE.findall(prose(text))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings: lower case, no punctuation, hyphens for spaces."""
    titles = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", title) for title in HEADING.findall(prose(text))]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

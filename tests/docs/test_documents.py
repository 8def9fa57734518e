"""Every document is true of the tree: its links, commands, flags, paths and imports exist. `make docs-check`."""

import ast
import importlib
import re

import pytest

from tests.docs.command_lines import ROOMS, DocsError, check_command, known_flags, make_targets, module_exists, split
from tests.docs.markdown import ROOT, anchors, blocks, documents, inline_code, links

# Flags of other programs that the documents mention.
OTHER_FLAGS = {"--help", "--lowvram", "--gpus", "--force-fp16", "--nproc_per_node"}
SUFFIXES = (".py", ".md", ".txt", ".json", ".yaml", ".yml", ".toml", ".html", ".png", ".css", "/")

every_document = pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))


def broken_links(text, path):
    for link in links(text):
        target, _, anchor = link.partition("#")
        file = path if not target else path.parent / target
        if re.match(r"\w+:", link):
            continue
        if not file.exists():
            yield f"{link}: no such file"
        elif anchor and anchor not in anchors(file.read_text()):
            yield f"{link}: no such heading"


def broken_commands(text):
    for block in blocks(text):
        for words in split(block.text) if block.language in ("bash", "console", "sh", "shell") else []:
            try:
                check_command(words)
            except DocsError as error:
                yield f"line {block.line}: {error}"


def broken_python(text):
    """Imports of a Python block that fail."""
    for block in blocks(text):
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            for name in names:
                try:
                    if isinstance(node, ast.ImportFrom):
                        getattr(importlib.import_module(node.module), name)
                    else:
                        importlib.import_module(name)
                except (ImportError, AttributeError) as error:
                    yield f"line {block.line}: {error}"


def broken_inline_code(text):
    """Paths of our folders, flags, `make` targets and `python -m` modules that do not exist."""
    for code in inline_code(text):
        words = code.split()
        if re.search(r"<\w+>", code):  # a pattern, such as tests/<folder>
            continue
        if words[0].split("/")[0] in ROOMS and "/" in words[0] and words[0].endswith(SUFFIXES):
            if len(words) == 1 and not list(ROOT.glob(words[0].rstrip("/"))):
                yield f"`{code}`: no such file"
        elif words[0] == "make" and not {word for word in words[1:] if "=" not in word} <= make_targets():
            yield f"`{code}`: no such target"
        elif words[:2] == ["python", "-m"] and len(words) > 2 and not module_exists(words[2]):
            yield f"`{code}`: no such module"
        for flag in re.findall(r"(?<!\S)--[a-z][\w\-]*", code):
            if words[0] not in ("pip", "git", "hf") and flag not in known_flags() | OTHER_FLAGS:
                yield f"`{code}`: no flag {flag}"


def broken_tests(text, path):
    """Tests that a table names after a link to their file, and that are not there."""
    for target, names in re.findall(r"\]\(([^)]+\.py)\): ((?:`test_\w+`(?:, )?)+)", text):
        source = (path.parent / target).read_text()
        for name in re.findall(r"test_\w+", names):
            if not re.search(rf"^ *def {name}\(", source, re.MULTILINE):
                yield f"{target}: no {name}"


@every_document
def test_links_lead_somewhere(path):
    assert list(broken_links(path.read_text(), path)) == []


@every_document
def test_commands_are_accepted_by_their_parsers(path):
    assert list(broken_commands(path.read_text())) == []


@every_document
def test_python_examples_import_what_exists(path):
    assert list(broken_python(path.read_text())) == []


@every_document
def test_code_in_the_text_names_what_exists(path):
    assert list(broken_inline_code(path.read_text())) == []


def test_every_case_of_reliability_has_a_test_that_exists():
    path = ROOT / "docs" / "reliability.md"
    text = path.read_text()
    rows = [line for line in text.splitlines() if re.match(r"\|[ \d]+\|(?! case )", line)]
    cases = [int(number) for line in rows if (number := line.split("|")[1].strip())]
    assert cases == [number for number in range(1, 46) if number not in (19, 31)]
    assert all(re.search(r"\.py\): `test_", line) for line in rows)
    assert list(broken_tests(text, path)) == []


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("make demo && make dome", "dome"),
        ("python train_ad.py", "train_ad.py"),
        ("python train_add.py --train_batch_sizes 4", "train_batch_sizes"),
        ("accelerate launch --num_proceses 1 train_add.py", "num_proceses"),
        ("accelerate launch --num_processes 1 train_add.py --resolution big", "resolution"),
        ("torchrun --nproc_per_node 2 train_add.py --no_such_flag", "no_such_flag"),
        ("python -m evaluation draw", "draw"),
        ("python -m training.publishes my-student", "training.publishes"),
        ("python -m benchmarks.full_size count --batch_sizes 1", "batch_sizes"),
        ("HF_HUB_OFFLINE=1 python -m evaluation.comparison --recipe examples/demo/none.txt", "none.txt"),
        ("add-publish my-student", "repo_id"),
        ("pip install -r requirements-gpus.txt", "requirements-gpus.txt"),
        ("pip install '.[gpu]'", "gpu"),
        ("pipx run it", "pipx"),
    ],
)
def test_a_command_with_a_mistake_is_found(command, complaint):
    found = list(broken_commands(f"```bash\n{command}\n```\n"))
    assert len(found) == 1
    assert complaint in found[0]


def test_a_command_over_lines_with_comments_is_read_whole():
    text = "make demo  # the demo; not `make dome`\n\npython a.py \\\n  --x 'b # c' | tee log\n"
    assert split(text) == [["make", "demo"], ["python", "a.py", "--x", "b # c"], ["tee", "log"]]


def test_a_marked_block_is_skipped():
    assert not list(broken_commands("<!-- docs-check: skip, another project's -->\n```bash\npipx run it\n```\n"))


def test_other_mistakes_are_found(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("# One\n")
    assert list(broken_links("[a](page.md#one) [b](page.md#two) [c](other.md) [d](https://x.org)", path)) == [
        "page.md#two: no such heading",
        "other.md: no such file",
    ]
    tests = "[a](test_page.py): `test_one`, `test_two`; [a](test_page.py): `test_three`"
    (tmp_path / "test_page.py").write_text("def test_one():\n    pass\n")
    assert list(broken_tests(tests, path)) == ["test_page.py: no test_two", "test_page.py: no test_three"]
    assert len(list(broken_python("```python\nfrom pipelines import ADDPipeline, NoPipeline\n```\n"))) == 1
    code = "`training/none.py` `training/errors.py` `make dome` `python -m evaluations` `--no_such_flag` `--resolution`"
    assert len(list(broken_inline_code(code))) == 4

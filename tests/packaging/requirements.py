"""Writes requirements.txt from pyproject.toml: `make requirements`."""

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
HEADER = """\
# Written by `make requirements` from pyproject.toml, which has the list of dependencies and says why some are capped.
# The versions that are tested together are in constraints.txt:
#   pip install -r requirements.txt -c constraints.txt
# On a GPU, install the torch build for your CUDA version first. Evaluation, the live page, xformers and the tests need
# more: pip install '.[evaluation]', '.[live]', '.[xformers]', '.[dev]'.
"""


def read_project() -> dict[str, Any]:
    """Read the table `[project]` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements_text() -> str:
    """The text of requirements.txt: the project's dependencies without its extras, one a line."""
    return HEADER + "".join(f"{requirement}\n" for requirement in read_project()["dependencies"])


if __name__ == "__main__":
    (ROOT / "requirements.txt").write_text(requirements_text())

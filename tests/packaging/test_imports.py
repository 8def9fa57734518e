"""The folders import one another downwards only, as docs/ARCHITECTURE.md says."""

import ast

import pytest

from tests.packaging.test_dependencies import OURS, sources

METHOD = {"discriminator", "distillation", "pipelines", "training"}
# What each folder or script may import besides itself.
MAY_IMPORT = {
    "discriminator": set(),
    "pipelines": set(),
    "distillation": {"discriminator"},
    "training": {"discriminator", "distillation", "pipelines"},
    "train_add": METHOD,
    "train_add_sdxl": METHOD | {"train_add"},
    "train_add_sd3": METHOD | {"train_add"},
    "evaluation": METHOD,
    "examples": METHOD | {"evaluation"},
    "benchmarks": METHOD | {"train_add", "train_add_sdxl", "train_add_sd3", "evaluation", "examples"},
    "add_diffusers": {"pipelines"},
    "docs": set(),
}


def folder_of(name: str) -> str:
    """The folder or script of ours that has the file, or the module, `name`."""
    return name.removesuffix(".py").replace("/", ".").split(".")[0]


def imported_modules(tree: ast.Module) -> set[str]:
    """The modules that are imported anywhere in a file, within functions and for types included."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(node.module)
    return modules


FILES = [(name, tree) for name, tree in sources() if folder_of(name) in MAY_IMPORT]


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_downwards(folder):
    found = {name: imported_modules(tree) for name, tree in FILES if folder_of(name) == folder}
    upwards = {
        f"{name} imports {module}"
        for name, modules in found.items()
        for module in modules
        if folder_of(module) in OURS - MAY_IMPORT[folder] - {folder}
    }
    assert found, f"there is no {folder}"
    assert not upwards


def test_the_rule_has_no_circle_and_leaves_out_no_folder():
    allowed = dict(MAY_IMPORT)
    while free := [folder for folder, below in allowed.items() if not below & allowed.keys()]:
        allowed = {folder: below for folder, below in allowed.items() if folder not in free}
    assert not allowed, f"a circle between {sorted(allowed)}"
    assert {folder_of(name) for name, _ in sources()} == MAY_IMPORT.keys()

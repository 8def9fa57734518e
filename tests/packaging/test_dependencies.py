"""The list of dependencies: files derived from it are up to date, imports are listed, uses of private names capped."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.packaging.requirements import ROOT, read_project, requirements_text

PROJECT = read_project()
REQUIREMENTS = {
    canonicalize_name(requirement.name): requirement
    for lines in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for line in lines
    if canonicalize_name((requirement := Requirement(line)).name) != PROJECT["name"]
}
OURS = {"add_diffusers", "benchmarks", "discriminator", "distillation", "evaluation", "examples", "pipelines"}
OURS |= {"train_add", "train_add_sd3", "train_add_sdxl", "training"}
# xformers needs a GPU, and setuptools comes with torch.
NOT_PINNED = {"xformers", "setuptools"}
# Imported only where it is installed: it needs the torchvision of one's own torch, which no extra can name.
NOT_LISTED = {"torch_fidelity"}
# Names that modules of ours use on the objects of a library, although it keeps them private.
PRIVATE = {
    "_compiled_call_impl": "torch",
    "_version": "torch",
    "_python_dispatch": "torch",
    "_pytree": "torch",
    "_subclasses": "torch",
    "_cdata": "torch",
    "_overloadpacket": "torch",
    "_scaled_dot_product_flash_attention_for_cpu": "torch",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "torch",
    "_step_supports_amp_scaling": "torch",
    "_forward_pre_hooks": "torch",
    "_scale": "torch",
    "_internal_dict": "diffusers",
    "_keep_in_fp32_modules": "diffusers",
    "_disable_adapters": "peft",
    "_fingerprint": "datasets",
    "_indices": "datasets",
    "_reset_state": "accelerate",
}
OF_THE_STANDARD_LIBRARY = {"_actions"}  # of an argparse.ArgumentParser


def sources():
    names = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.split():
        if not name.startswith(("tests/", "setup.py")) and (ROOT / name).exists():
            yield name, ast.parse((ROOT / name).read_text())


def test_requirements_txt_is_what_pyproject_says():
    assert (ROOT / "requirements.txt").read_text() == requirements_text(), "run `make requirements`"


def test_constraints_are_versions_that_the_requirements_allow():
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pinned[canonicalize_name(name)] = Version(version)
    for name, requirement in REQUIREMENTS.items():
        if requirement.marker is None and name not in NOT_PINNED:
            assert name in pinned, f"{name} has no tested version"
            assert requirement.specifier.contains(pinned[name]), f"{name} {pinned[name]} against {requirement}"


def test_what_is_imported_is_listed():
    distributions, missing = packages_distributions(), set()
    for name, tree in sources():
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for module in {module.split(".")[0] for module in modules} - OURS - NOT_LISTED - sys.stdlib_module_names:
                of_module = {canonicalize_name(distribution) for distribution in distributions.get(module, [module])}
                if not of_module & REQUIREMENTS.keys():
                    missing.add(f"{name}: {module}")
    assert not missing


@pytest.mark.parametrize("library", sorted(set(PRIVATE.values())))
def test_a_library_whose_private_names_are_used_is_capped_below_a_next_major(library):
    caps = [Version(limit.version) for limit in REQUIREMENTS[library].specifier if limit.operator == "<"]
    assert len(caps) == 1
    assert caps[0].release == (caps[0].major,)


def is_private(name):
    return re.match(r"_[a-z]", name) is not None


def own_names(tree):
    """Private names that a module of ours defines: functions, classes, variables and attributes of `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def used_names(tree):
    """Attributes of anything, and every part of what is imported from the modules of others."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from [*node.module.split("."), *(alias.name for alias in node.names)]


def test_every_private_name_that_is_used_is_known_here():
    trees = dict(sources())
    own = {name for tree in trees.values() for name in own_names(tree)}
    unknown = {
        f"{file}: {name}"
        for file, tree in trees.items()
        for name in used_names(tree)
        if is_private(name) and name not in own | PRIVATE.keys() | OF_THE_STANDARD_LIBRARY
    }
    assert not unknown, "name the library in PRIVATE, and cap it in pyproject.toml"


def test_every_known_private_name_is_still_used():
    used = {name for _, tree in sources() for name in used_names(tree)}
    # Names that are only asked for as text, as in `hasattr(optimizer, "_step_supports_amp_scaling")`.
    texts = {node.value for _, tree in sources() for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert PRIVATE.keys() <= used | texts

"""Where diffusers' own tests come from: its repository, for the package that is installed holds none of them."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

VARIABLE, DEFAULT = "DIFFUSERS_CHECKOUT", "build/diffusers"
ALIAS = "diffusers_tests"  # the checkout calls them `tests`, as this project does its own


def load_suite() -> tuple[ModuleType, ModuleType, ModuleType]:
    """(testing_utils, pipeline_params, ip_adapter_tester) of the checkout's tests; skips aloud where there is none."""
    tests = Path(os.environ.get(VARIABLE, DEFAULT), "tests").resolve()
    if not (tests / "pipelines" / "testing_utils" / "common.py").is_file():
        pytest.skip(
            f"no checkout of diffusers with its pipeline tests: {tests} is not one. Set {VARIABLE} to one, or let "
            "`make test-conformance` fetch it.",
            allow_module_level=True,
        )
    init = tests / "__init__.py"
    spec = importlib.util.spec_from_file_location(ALIAS, init, submodule_search_locations=[str(tests)])
    sys.modules[ALIAS] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[ALIAS])
    names = ("pipelines.testing_utils", "pipelines.pipeline_params", "pipelines.stable_diffusion.ip_adapter_tester")
    return tuple(importlib.import_module(f"{ALIAS}.{name}") for name in names)

"""What many tests share: quiet libraries, no network, one thread each (tests run in parallel), and a small world on
disk."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import diffusers
import pytest
import torch
from accelerate.state import AcceleratorState

from tests.slow import is_slow
from tests.support import tiny_world
from tests.support.network import block_network
from tests.support.runs import SCRIPTS, Script

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)
block_network()
# A shell ignores SIGINT in background jobs, and all processes that the tests start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# diffusers' own tests run against ours only where a checkout of diffusers is named: `make test-conformance`.
collect_ignore = [] if "DIFFUSERS_CHECKOUT" in os.environ else ["conformance"]


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """accelerate keeps its precision for a process; tests in one process want different ones."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _usual_verbosity():
    """Commands make the libraries quiet for a process; tests in one process want to see their warnings."""
    diffusers.utils.logging.set_verbosity_warning()


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """An epsilon teacher, a feature network, a CLIP and 24 images, untrained, on disk."""
    return tiny_world.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def v_world(tmp_path_factory):
    """The same with a v-prediction teacher."""
    return tiny_world.build(tmp_path_factory.mktemp("v_world"), prediction_type="v_prediction")


@pytest.fixture(scope="session")
def sdxl_world(tmp_path_factory):
    """The same with an epsilon teacher in SDXL's layout."""
    return tiny_world.build(tmp_path_factory.mktemp("sdxl_world"), layout="sdxl")


@pytest.fixture(scope="session")
def sd3_world(tmp_path_factory):
    """The same with a flow-matching teacher in Stable Diffusion 3's layout."""
    return tiny_world.build(tmp_path_factory.mktemp("sd3_world"), layout="sd3")


@pytest.fixture(scope="module", params=SCRIPTS)
def script(request):
    """All scripts, one after the other."""
    world, module, *rest = SCRIPTS[request.param]
    return Script(module, request.getfixturevalue(world), *rest)


def pytest_collection_modifyitems(items):
    """Mark what `make test-fast` leaves out."""
    for item in items:
        if is_slow(item.path.relative_to(ROOT).as_posix()):
            item.add_marker(pytest.mark.slow)

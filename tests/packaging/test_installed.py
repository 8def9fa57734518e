"""The wheel, installed beside decoys: the pipelines and the commands work anywhere, and import nothing of others."""

import io
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.tiny.models import make_scheduler
from pipelines import student_scheduler
from tests.packaging.requirements import ROOT, read_project
from tests.pipelines.families import FAMILIES

ROOMS = ("discriminator", "distillation", "evaluation", "examples", "pipelines", "training")
COMMANDS = sorted(read_project()["scripts"])
DRAW = """
import sys
import numpy as np, torch
from add_diffusers import ADDPipeline

assert {"pipelines", "training", "evaluation"}.isdisjoint(sys.modules)
repo, output = sys.argv[1:]
pipe = ADDPipeline.from_pretrained(repo)
image = pipe("a fox", height=32, width=32, output_type="np", generator=torch.Generator().manual_seed(0)).images[0]
np.save(output + "/image.npy", image)
pipe.save_pretrained(output + "/saved")
"""


def run(*command, cwd):
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked_files():
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the files that git knows: building writes into the tree, and an old build may have left files there."""
    folder, archive = tmp_path_factory.mktemp("checkout"), io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in tracked_files():
            if not name.startswith(("tests/", "docs/")):
                tar.add(ROOT / name, name)
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def make_environment(folder, *what):
    """An environment with `what` installed by pip, without a network, and the packages of this one below it."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin/python"
    # setuptools, for an editable install, is among the packages of this environment.
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    shared = sysconfig.get_path("purelib")
    site_packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    pth = Path(site_packages, "shared.pth")
    pth.write_text(f"{shared}\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--ignore-installed", *options, *what, cwd=folder)
    return python


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, checkout, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The Python of an environment with the wheel installed."""
    return make_environment(tmp_path_factory.mktemp("environments") / "wheel", wheel)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A working folder with somebody's own modules, named like ours."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for room in ROOMS:
        Path(folder, f"{room}.py").write_text("raise RuntimeError('the module of somebody else was imported')\n")
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A published tiny student, and the image that the checkout draws with it."""
    family, folder = FAMILIES["sd"], tmp_path_factory.mktemp("published") / "student"
    scheduler = student_scheduler(make_scheduler().config, "epsilon")
    pipe = family.ours(**family.components() | family.tokenizers(), scheduler=scheduler, **family.options)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    return folder, pipe("a fox", height=32, width=32, output_type="np", generator=generator).images[0]


def check_pipeline(python, student, elsewhere, output):
    folder, image = student
    run(python, "-c", DRAW, folder, output, cwd=elsewhere)
    assert np.array_equal(np.load(output / "image.npy"), image)
    assert (output / "saved/pipeline.py").read_bytes() == (folder / "pipeline.py").read_bytes()


def test_the_wheel_has_every_file_of_the_rooms(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    # The showcase's networks and the job scripts are for a checkout.
    files = [name for name in tracked_files() if not name.endswith((".safetensors", ".sbatch"))]
    expected = {f"add_diffusers/{name}" for name in files if name.startswith(tuple(f"{room}/" for room in ROOMS))}
    assert packed == expected | {name for name in files if name.startswith("add_diffusers/")}


def test_the_installed_pipeline_draws_and_saves_as_in_the_checkout(python, student, elsewhere, tmp_path):
    check_pipeline(python, student, elsewhere, tmp_path)


def test_importing_the_package_imports_no_library(python, elsewhere):
    run(python, "-c", "import sys, add_diffusers; sys.exit('torch' in sys.modules)", cwd=elsewhere)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_installed_command_shows_its_help(python, elsewhere, command):
    assert run(python.parent / command, "--help", cwd=elsewhere).startswith(f"usage: {command} ")


def test_an_installed_command_works(python, student, elsewhere, tmp_path):
    run(python.parent / "add-single-file", student[0], "--output", tmp_path / "student.safetensors", cwd=elsewhere)
    assert (tmp_path / "student.safetensors").stat().st_size > 1000


def test_an_editable_install_works_the_same(checkout, student, elsewhere, tmp_path):
    python = make_environment(tmp_path / "editable", "--editable", checkout)
    assert run(python, "-c", "import add_diffusers as a; print(a.__file__)", cwd=elsewhere).startswith(str(checkout))
    check_pipeline(python, student, elsewhere, tmp_path)
    assert run(python.parent / "add-publish", "--help", cwd=elsewhere).startswith("usage: add-publish ")


def test_a_checkout_that_is_not_installed_has_both_names():
    code = "from add_diffusers import ADDXLPipeline as a; from pipelines import ADDXLPipeline as b; print(a.__name__)"
    assert run(sys.executable, "-c", code, cwd=ROOT) == "ADDXLPipeline\n"

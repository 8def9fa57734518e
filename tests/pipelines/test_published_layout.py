"""The repository our pipelines write, and every way to load it."""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers.pipelines.pipeline_utils
import diffusers.utils.hub_utils
import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
    LCMScheduler,
)
from diffusers.utils import dynamic_modules_utils
from huggingface_hub import ModelCard

import pipelines
from pipelines import ADDPipeline
from pipelines.saving import whole_source


def digests(folder) -> dict[str, str]:
    files = [f for f in sorted(Path(folder).rglob("*")) if f.is_file()]
    return {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def assert_same_image(actual, expected):
    """Up to rounding: how a file's tensors lie in memory decides which kernels run."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def image(pipe, **kwargs) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a seven", num_inference_steps=2, generator=generator, output_type="np", **kwargs).images


@pytest.fixture
def modules_cache(tmp_path, monkeypatch):
    """Where diffusers copies remote code to, in this test only."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        del sys.modules[name]


def load_remote_code(repo: str) -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)


def test_layout(family, repo):
    """Stock class, stock scheduler, the pipeline's own file, and no path of this machine in any of it."""
    folders = {"unet", "vae", *family.text_encoders}
    weights = {n: "model" if n in family.text_encoders else "diffusion_pytorch_model" for n in folders}
    assert digests(repo).keys() == {
        "model_index.json",
        "pipeline.py",
        "scheduler/scheduler_config.json",
        *(f"{name}/config.json" for name in folders),
        *(f"{name}/{weights[name]}.safetensors" for name in folders),
        *(f"{name}/tokenizer.json" for name in family.tokenizers()),
        *(f"{name}/tokenizer_config.json" for name in family.tokenizers()),
    }
    index = json.loads(Path(repo, "model_index.json").read_text())
    assert index["_class_name"] == family.stock_name
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    scheduler = json.loads(Path(repo, "scheduler/scheduler_config.json").read_text())
    assert scheduler["timestep_spacing"] == "trailing"
    assert scheduler["_student_timesteps"] == [249, 499, 749, 999]


def test_published_file_is_the_family_with_the_shared_text(family, repo):
    """Each line that imports from a module next to it becomes that module, once; nothing else changes."""
    folder, inserted = Path(family.module.__file__).parent, []

    def lines_of(name: str) -> list[str]:
        found = []
        for line in Path(folder, name).read_text().splitlines(keepends=True):
            module = line.split()[1].removeprefix(".") + ".py" if line.startswith("from .") else None
            if module is None:
                found.append(line)
            elif module not in inserted:
                inserted.append(module)
                found += lines_of(module)
        return found

    expected = "".join(lines_of(Path(family.module.__file__).name))
    assert Path(repo, "pipeline.py").read_text() == expected
    assert {"few_step.py", "optimize.py", "precision.py"} <= set(inserted)


def test_published_file_defines_each_name_once(repo):
    """Modules that become one file must not overwrite each other's functions and constants."""
    tree = ast.parse(Path(repo, "pipeline.py").read_text(encoding="utf-8"))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    targets = [node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None) for node in tree.body]
    names += [target.id for target in targets if isinstance(target, ast.Name) and target.id != "logger"]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "line", [b"from .b import one\n", b"from .b import one, two\n", b"from .b import (\n    one,\n    two,\n)\n"]
)
def test_whole_source(tmp_path, line):
    """Imports of neighbors on one or several lines, from two files, are replaced by the text once."""
    (tmp_path / "a.py").write_bytes(b"import json\n" + line + b"from .c import three\nlast = 1\n")
    (tmp_path / "b.py").write_bytes(b"one, two = 1, 2\n")
    (tmp_path / "c.py").write_bytes(b"from .b import two\nthree = two + 1\n")
    assert whole_source(str(tmp_path / "a.py")) == b"import json\none, two = 1, 2\nthree = two + 1\nlast = 1\n"


def test_the_folder_works_under_another_name(repo, tmp_path):
    """Installed as a package of any name, it imports nothing of this project and publishes the same file."""
    package = Path(pipelines.__file__).parent
    shutil.copytree(package, tmp_path / "add_pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    script = f"""
import sys
from add_pipelines import ADDPipeline
pipe = ADDPipeline.from_pretrained({repo!r})
pipe.save_pretrained("again")
assert "pipelines" not in sys.modules
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert digests(tmp_path / "again") == digests(repo)


@pytest.mark.parametrize("student", [(249, 499, 749, 999), (699, 799, 899, 999)])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loading_matrix(family, make_pipeline, tmp_path, complaints, modules_cache, prediction_type, student):
    """All ways to load give the published image; stock ones without remote code and without a warning."""
    repo = str(tmp_path / "repo")
    original = make_pipeline(prediction_type=prediction_type, student_timesteps=student)
    original.save_pretrained(repo)
    steps = original.sampling_timesteps(2)
    expected = image(original)

    text = AutoPipelineForText2Image.from_pretrained(repo)
    assert type(text) is family.stock["text"]
    assert_same_image(image(text, guidance_scale=0.0, timesteps=steps), expected)
    assert type(AutoPipelineForImage2Image.from_pretrained(repo)) is family.stock["image"]
    assert type(AutoPipelineForInpainting.from_pretrained(repo)) is family.stock["inpaint"]
    assert type(DiffusionPipeline.from_pretrained(repo)) is family.stock["text"]

    ours = ADDPipeline.from_pretrained(repo)  # of either family
    assert type(ours) is family.ours
    assert ours.student_timesteps == student
    assert_same_image(image(ours), expected)

    remote = load_remote_code(repo)
    assert type(remote).__name__ == family.ours.__name__
    assert type(remote).__module__.startswith("diffusers_modules")
    assert remote.student_timesteps == student
    assert_same_image(image(remote), expected)
    assert complaints == []


def test_save_load_save_is_stable(repo, tmp_path, modules_cache):
    """Saving what was loaded, by import or as remote code, gives the same files byte for byte."""
    for name, load in {"imported": ADDPipeline.from_pretrained, "remote": load_remote_code}.items():
        load(repo).save_pretrained(tmp_path / name)
        assert digests(tmp_path / name) == digests(repo)
        load(str(tmp_path / name)).save_pretrained(tmp_path / (name + "_again"))
        assert digests(tmp_path / (name + "_again")) == digests(repo)


def test_remote_code_saves_its_own_file(repo, tmp_path, modules_cache):
    """Loading a second repository's pipeline.py overwrites the first in the cache, yet each saves its own."""
    first = load_remote_code(repo)
    shutil.copytree(repo, tmp_path / "other")
    with open(tmp_path / "other" / "pipeline.py", "a") as file:
        file.write("\n# another version\n")
    second = load_remote_code(str(tmp_path / "other"))
    first.save_pretrained(tmp_path / "a")
    second.save_pretrained(tmp_path / "b")
    assert Path(tmp_path, "a", "pipeline.py").read_bytes() == Path(repo, "pipeline.py").read_bytes()
    assert Path(tmp_path, "b", "pipeline.py").read_text().endswith("# another version\n")


@pytest.mark.parametrize(
    ("options", "weights", "load_options"),
    [
        ({"variant": "fp16"}, "diffusion_pytorch_model.fp16.safetensors", {"variant": "fp16"}),
        ({"max_shard_size": "40KB"}, "diffusion_pytorch_model-00001-of-*.safetensors", {}),
        ({"safe_serialization": False}, "diffusion_pytorch_model.bin", {}),
    ],
)
def test_save_options(family, make_pipeline, tmp_path, options, weights, load_options):
    """variant, max_shard_size and safe_serialization mean what they mean in diffusers."""
    make_pipeline().save_pretrained(tmp_path, **options)
    assert list(Path(tmp_path, "unet").glob(weights))
    assert Path(tmp_path, "pipeline.py").read_bytes() == family.ours._source
    loaded = ADDPipeline.from_pretrained(tmp_path, **load_options)
    assert_same_image(image(loaded), image(make_pipeline()))


@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
def test_push_to_hub_uploads_the_layout(repo, tmp_path, monkeypatch, way):
    """Both ways to push hand the Hub client the very files of save_pretrained, and a model card."""

    def upload(repo_id, folder_path, **_):
        shutil.copytree(folder_path, tmp_path / "hub" / repo_id)

    def card(*_, **__):
        return ModelCard("---\nlicense: openrail\n---\n# A student")

    for module in (diffusers.utils.hub_utils, diffusers.pipelines.pipeline_utils):
        monkeypatch.setattr(module, "create_repo", lambda repo_id, **_: SimpleNamespace(repo_id=repo_id))
        monkeypatch.setattr(module, "load_or_create_model_card", card)
    monkeypatch.setattr(diffusers.utils.hub_utils, "upload_folder", upload)
    if way == "push_to_hub":
        ADDPipeline.from_pretrained(repo).push_to_hub("user/student")
    else:
        pipe = ADDPipeline.from_pretrained(repo)
        pipe.save_pretrained(str(tmp_path / "local"), push_to_hub=True, repo_id="user/student")
    uploaded = digests(tmp_path / "hub" / "user" / "student")
    assert uploaded.pop("README.md")
    assert uploaded == digests(repo)


def test_scheduler_swapped_by_the_user_is_published(make_pipeline, tmp_path):
    """Another stock scheduler is saved as it is, with the student's timesteps."""
    pipe = make_pipeline(student_timesteps=(699, 799, 899, 999))
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=1000)
    pipe.save_pretrained(tmp_path)
    loaded = ADDPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is LCMScheduler
    assert loaded.student_timesteps == (699, 799, 899, 999)
    assert_same_image(image(loaded), image(pipe))


def test_remote_code_stays_the_users_choice(repo):
    """Without trust_remote_code the repository's file is not run."""
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo)


def test_published_file_imports_nothing_of_ours(family, repo):
    """pipeline.py imports the standard library, torch and diffusers, and holds one pipeline class."""
    tree = ast.parse(Path(repo, "pipeline.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert all(getattr(node, "level", 0) == 0 for node in imports)
    modules = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
    assert {m.split(".")[0] for m in modules} - set(sys.stdlib_module_names) == {"torch", "diffusers"}
    assert dynamic_modules_utils.find_pipeline_class(family.module) is family.ours


def test_pipeline_file_runs_alone_and_offline(family, repo, tmp_path):
    """pipeline.py alone in an empty folder, without this project on the path, with HF_HUB_OFFLINE=1."""
    shutil.copy(Path(repo, "pipeline.py"), tmp_path)
    script = f"""
import sys, torch, numpy, pipeline
pipe = pipeline.{family.ours.__name__}.from_pretrained({repo!r})
pipe.save_pretrained("again")
images = pipe("a seven", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
numpy.save("images.npy", images)
assert "pipelines" not in sys.modules
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error::UserWarning:pipeline", "-c", script]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert_same_image(np.load(tmp_path / "images.npy"), image(ADDPipeline.from_pretrained(repo)))
    assert digests(tmp_path / "again") == digests(repo)

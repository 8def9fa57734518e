"""Trained, pushed and loaded again in processes of their own, set up as a user does: HF_ENDPOINT, HF_HOME, HF_TOKEN."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict

from tests.hub.server import WRITE
from training.publishing.command import main
from training.publishing.folder.verification import FILES
from training.publishing.hub.push import MESSAGE, publish

ROOT = Path(__file__).parent.parent.parent
PUSH = """
import runpy, sys
given = sys.argv
sys.argv = ["training.publish", *given[3:]]
runpy.run_module("training.publish", run_name="__main__")  # python -m training.publish
sys.argv = given
"""
LOAD = """
import os, re, sys
import numpy as np, pytest, torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub import ModelCard, hf_hub_download
from pipelines import ADDPipeline

local, first_commit, online = sys.argv[1], sys.argv[2], os.environ["HF_HUB_OFFLINE"] == "0"
REPO, LORA, FILE = "user/my-student", "user/lora", {"weight_name": "pytorch_lora_weights.safetensors"}

def image(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a seven", num_inference_steps=2, guidance_scale=0.0, generator=generator, output_type="np").images

def same(pipe, expected):
    return np.allclose(image(pipe), expected, rtol=0, atol=1e-5)

expected = image(StableDiffusionPipeline.from_pretrained(local, local_files_only=True))
stock = AutoPipelineForText2Image.from_pretrained(REPO)
assert type(stock) is StableDiffusionPipeline and same(stock, expected)
ours = ADDPipeline.from_pretrained(REPO)
assert type(ours) is ADDPipeline and same(ours, expected)

with pytest.raises(ValueError, match="trust_remote_code"):
    DiffusionPipeline.from_pretrained(REPO, custom_pipeline=REPO)
# Without a network diffusers does not find code by the repo's name, only by its folder.
code = REPO if online else os.path.dirname(hf_hub_download(REPO, "pipeline.py"))
remote = DiffusionPipeline.from_pretrained(REPO, custom_pipeline=code, trust_remote_code=True)
assert type(remote).__module__.startswith("diffusers_modules") and same(remote, expected)

pinned = StableDiffusionPipeline.from_pretrained(REPO, revision=first_commit)
assert not same(pinned, expected)
half = StableDiffusionPipeline.from_pretrained(REPO, variant="fp16", torch_dtype=torch.float16)
assert half.unet.dtype == torch.float16
assert np.allclose(image(half.to(torch.float32)), expected, rtol=0, atol=0.05)

stock.load_lora_weights(LORA, **({} if online else FILE))
with_lora = image(stock)
assert not np.allclose(with_lora, expected, rtol=0, atol=1e-5)

if online:  # every snippet of both cards, word for word but for the device
    for repo in (REPO, LORA):
        card = ModelCard.load(repo)
        blocks = re.findall(r"```python\\n(.*?)```", card.text, flags=re.S)
        names = {}
        for block in blocks:
            block = block.replace('"cuda"', '"cpu"').replace("float16", "float32").replace("path/to/a/lora", LORA)
            exec(block, names)
        assert len(blocks) == (4 if repo == REPO else 2), repo
        assert names["image"].size == (32, 32)
print("all loaded")
"""


def run(hub, home: Path, offline: bool, code: str, *arguments) -> subprocess.CompletedProcess:
    """Run `code` as a user's process."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    hugging_face = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": WRITE,
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=inherited | hugging_face, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def lora(student, tmp_path) -> Path:
    """What a LoRA-only run leaves: the adapter, how it is sampled, and where it came from."""
    folder = tmp_path / "lora"
    unet = UNet2DConditionModel.from_pretrained(student, subfolder="unet")
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    shutil.copytree(student / "scheduler", folder / "scheduler")
    origin = {"base_model": "user/my-student", "base_model_on_hub": True}
    (folder / "add_run.json").write_text(json.dumps(json.loads((student / "add_run.json").read_text()) | origin))
    return folder


@pytest.fixture
def other(student, tmp_path) -> Path:
    """The same student with another UNet."""
    folder = Path(shutil.copytree(student, tmp_path / "other"))
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    unet.save_pretrained(folder / "unet")
    (folder / FILES).unlink()  # a change of the owner's own
    return folder


@pytest.mark.usefixtures("client")
def test_trained_pushed_and_loaded_in_every_way(hub, student, other, lora, tmp_path):
    """Another student first; then the command and all loaders in one process; then the loaders without the Hub."""
    first = publish(other, "my-student", token=WRITE, private=True).commit
    publish(lora, "user/lora", token=WRITE)
    command = (student, "--repo_id", "user/my-student", "--variant", "fp16", "--license", "openrail++")

    online = run(hub, tmp_path / "home", False, PUSH + LOAD, student, first, *command)
    assert online.returncode == 0, online.stderr
    assert "Published 16 files to user/my-student (main), commit " in online.stdout
    assert online.stdout.endswith("all loaded\n")
    assert WRITE not in online.stdout + online.stderr
    assert b"license: openrail++" in hub.files("user/my-student")["README.md"]
    assert hub.titles("user/my-student") == ["initial commit", MESSAGE, MESSAGE]

    asked = len(hub.requests)
    offline = run(hub, tmp_path / "home", True, LOAD, student, first)
    assert offline.returncode == 0, offline.stderr
    assert len(hub.requests) == asked


@pytest.mark.usefixtures("client")
def test_refusal_of_the_command(hub, student, capsys):
    """A token the Hub does not know: status not 0, one line with the mend, and no token in it."""
    with pytest.raises(SystemExit) as exit_:
        main([str(student), "--repo_id", "user/my-student", "--hub_token", "hf_expired"])
    message = capsys.readouterr().err
    assert exit_.value.code == 1
    assert message.startswith(f"python -m training.publish: error: {student} was not published to user/my-st")
    assert "hf auth login" in message
    assert message.count("\n") == 1
    assert "hf_expired" not in message

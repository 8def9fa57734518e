"""Sharded runs (FSDP2) of two processes do what data-parallel ones and a single process do, and hold less.

One launch makes all runs of two processes, since it is the start of processes that takes time.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from benchmarks.exchange import Layout, Networks
from tests.support import tiny_world
from tests.support.runs import parse, run
from training.checkpoints.store import load_checkpoint
from training.models.lora import add_lora

ROOT = Path(__file__).parent.parent.parent
TIME_LIMIT = 1500  # seconds for a launch, which takes 80 on two idle cores; a hang ends here
# The launcher asks for sharding, and a run may say otherwise.
DDP = {"ACCELERATE_USE_FSDP": "false"}
COPIES = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "1",
}
# 8 samples a rank: the virtual batch norm's groups of 8 are the same at one rank and at two. The norm of the student's
# gradient is far above 0.01, so that every step is clipped.
BASE = ("--train_batch_size", 8, "--max_train_steps", 2, "--checkpointing_steps", 1, "--use_ema", "--r1_gamma", 1e-2,
        "--learning_rate", 1e-4, "--max_grad_norm", 0.01)  # fmt: skip
LORA = ("--use_lora", "--lora_rank", 4, "--fuse_lora")
PROMPTS = ("--validation_prompts", "a handwritten one")
ACCUMULATED = ("--gradient_accumulation_steps", 2, "--train_batch_size", 4, "--discriminator_norm", "group")
RUNS = {  # name: environment, flags
    "ddp": (DDP, PROMPTS),
    "fsdp": ({}, PROMPTS),
    # Settings that save memory and change no result.
    "frugal": ({"FSDP_OFFLOAD_PARAMS": "true", "FSDP_RESHARD_AFTER_FORWARD": "false"},
               (*PROMPTS, "--gradient_checkpointing")),
    "ddp-lora": (DDP, LORA),
    "fsdp-lora": ({}, LORA),
    "ddp-accumulated": (DDP, ACCUMULATED),
    "fsdp-accumulated": ({}, ACCUMULATED),
    "hybrid-accumulated": (COPIES, ACCUMULATED),
    "ddp-bf16": (DDP, ("--mixed_precision", "bf16")),
    "fsdp-bf16": ({}, ("--mixed_precision", "bf16")),
    "from-one": ({}, ("--resume_from_checkpoint", "latest")),
}  # fmt: skip


def launch(*command):
    """`accelerate launch` of two sharded processes, with a time limit."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2",
               "--num_processes", "2", "--main_process_port", "0", "--mixed_precision", "no", *command]  # fmt: skip
    with subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as started:
        try:
            _, log = started.communicate(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)  # the launcher's processes would outlive it
            raise
    assert started.returncode == 0, log[-4000:]


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """A folder with the outputs of `RUNS`, of runs of a single process, and what each rank held."""
    folder = tmp_path_factory.mktemp("fsdp")
    alone = (*BASE, "--train_batch_size", 16)
    for name, steps in (("one", 3), ("from-one", 1)):
        run(world, folder / name, *alone, "--max_train_steps", steps)
    jobs = [
        {"name": name, "environment": environment, "flags": tiny_world.flags(world, folder / name, *BASE, *flags)}
        for name, (environment, flags) in RUNS.items()
    ]
    (folder / "runs.json").write_text(json.dumps(jobs))
    launch(ROOT / "tests/scripts/several_runs.py", folder / "runs.json", folder)
    shutil.copytree(folder / "fsdp", folder / "to-one")
    run(world, folder / "to-one", *alone, "--max_train_steps", 3, "--resume_from_checkpoint", "latest")
    return folder


def figures(folder, name, rank=0):
    return json.loads((folder / f"{name}-{rank}.json").read_text())


def assert_equal_runs(folder, name, other, step=2, atol=2e-6, shares=0.999):
    """Weights, averages and both optimizers' moments: of `shares` of the numbers within `atol`, of all in 2e-4.

    Adam divides by the gradient's own size, so that rounding of a tiny gradient may be a visible step. The moments are
    the gradients themselves: a clip by another norm, or a sum in place of a mean, would show in all of them.
    """
    a, b = (load_checkpoint(folder / n / f"checkpoint-{step}") for n in (name, other))
    assert a.state["position"] == b.state["position"] == 16 * step
    assert a.tensors.keys() == b.tensors.keys()
    for group in a.tensors:
        assert a.tensors[group].keys() == b.tensors[group].keys()
        for kind in ("exp_avg", "exp_avg_sq") if group.endswith("_optimizer") else ("",):
            one, two = (
                torch.cat([t.flatten() for key, t in sorted(c.tensors[group].items()) if key.endswith(kind)])
                for c in (a, b)
            )
            if kind:
                scale = one.abs().max().item()
                assert torch.isclose(one, two, atol=1e-3 * scale, rtol=5e-2).float().mean() > shares, (group, kind)
            else:
                assert torch.isclose(one, two, atol=atol, rtol=1e-4).float().mean() > shares, group
                torch.testing.assert_close(one, two, atol=2e-4, rtol=1e-2, msg=group)


@pytest.mark.parametrize("other", ["ddp", "one"])
def test_equals_data_parallelism_and_one_process_with_the_whole_batch(runs, other):
    """R1 and clipping included."""
    assert_equal_runs(runs, "fsdp", other)


def test_what_saves_memory_changes_no_bit(runs):
    """Offloading, weights that stay gathered between forward and backward pass, and gradient checkpointing."""
    a, b = (load_checkpoint(runs / name / "checkpoint-2").tensors for name in ("fsdp", "frugal"))
    for group, tensors in a.items():
        assert all(torch.equal(tensor, b[group][name]) for name, tensor in tensors.items()), group


@pytest.mark.parametrize("name", ["fsdp", "fsdp-lora", "ddp", "ddp-lora"])
def test_memory_and_exchange_are_as_counted(runs, world, name):
    """Bytes held by a rank between two iterations, and those of the collectives of one."""
    layout = Layout("FSDP2", 1, 2) if name.startswith("fsdp") else Layout("DDP", 2, 1)
    networks = counted(world, *(LORA if name.endswith("lora") else ()))
    held, exchanged = networks.held(layout), networks.exchanged(layout)
    for rank in (0, 1):
        measured = figures(runs, name, rank)
        assert measured["student"] == held.student
        assert measured["optimizer"] == held.optimizer
        assert measured["ema"] == held.average
        assert measured["gathered"] == exchanged.gathered
        assert measured["reduced"] == exchanged.reduced


def test_copies_exchange_the_gradients_of_their_shards(runs, world):
    """Once an iteration, however many micro-batches it has."""
    exchanged = counted(world).exchanged(Layout("hybrid", 2, 1))
    assert figures(runs, "hybrid-accumulated")["all_reduced"] == exchanged.shards_reduced


def counted(world, *flags):
    """The networks of a run, to be counted."""
    student, teacher = (UNet2DConditionModel.from_pretrained(world / "teacher", subfolder="unet") for _ in range(2))
    if not flags:
        return Networks(student, teacher.requires_grad_(False), heads=0, use_ema=True)
    add_lora(student, parse(world, "unused", *flags).lora)
    return Networks(student, None, heads=0, use_ema=True)


def test_lora_equals_data_parallelism(runs):
    assert_equal_runs(runs, "fsdp-lora", "ddp-lora")


@pytest.mark.parametrize("name", ["fsdp-accumulated", "hybrid-accumulated"])
def test_accumulated_gradients_equal_those_of_data_parallelism(runs, name):
    """Hybrid sharding over two copies of one process each exchanges gradients with the last micro-batch only."""
    assert_equal_runs(runs, name, "ddp-accumulated")


def test_bfloat16_equals_data_parallelism_up_to_its_rounding(runs):
    """Weights are gathered in bfloat16 and gradients are reduced in it; the weights themselves stay in float32."""
    a, b = (load_checkpoint(runs / n / "checkpoint-2").tensors for n in ("fsdp-bf16", "ddp-bf16"))
    for name in a["student"]:
        assert a["student"][name].dtype == torch.float32
        torch.testing.assert_close(a["student"][name], b["student"][name], atol=4e-4, rtol=0)
    one, two = (
        torch.cat([t.flatten() for k, t in c["student_optimizer"].items() if k.endswith("exp_avg")]) for c in (a, b)
    )
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.99


def test_resumed_at_another_number_of_processes(runs):
    """From one to two and from two to one, the run goes on as if nothing had changed."""
    assert_equal_runs(runs, "from-one", "one")
    assert_equal_runs(runs, "to-one", "one", step=3)


def published(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "other"), [("fsdp", "ddp"), ("fsdp-lora", "ddp-lora")])
def test_published_folder_is_whole_and_stock(runs, name, other):
    """The same files as without sharding, and they hold the averaged weights."""
    assert published(runs / name) == published(runs / other)
    assert (runs / name / "unet/config.json").read_text() == (runs / other / "unet/config.json").read_text()
    ours, theirs = (StableDiffusionPipeline.from_pretrained(runs / n).unet.state_dict() for n in (name, other))
    for key, weight in theirs.items():
        torch.testing.assert_close(ours[key], weight, atol=2e-4, rtol=1e-2)
    averages = load_checkpoint(runs / name / "checkpoint-2").tensors["student_ema"]
    if name == "fsdp":
        assert all(torch.equal(ours[key], average) for key, average in averages.items())


@pytest.mark.parametrize("name", ["fsdp", "frugal"])
def test_all_processes_draw_the_sample_grid(runs, name):
    """With the averaged weights, which are put back afterwards."""
    for step in (0, 2):
        a, b = (np.asarray(Image.open(runs / n / f"validation/step-{step}.png"), dtype=int) for n in (name, "ddp"))
        assert np.abs(a - b).max() <= 2

"""Sharded runs (FSDP2) of two processes do what data-parallel ones and a single process do, and hold less.

One launch makes all runs of two processes, since it is the start of processes that takes time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from tests import tiny_world
from tests.runs import run
from training.checkpoints.store import load_checkpoint

ROOT = Path(__file__).parent.parent.parent
TIME_LIMIT = 480  # seconds for a launch; a hang ends here
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
COPIES = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "1",
}
# 8 samples a rank: the virtual batch norm's groups of 8 are the same at one rank and at two. The norm of the student's
# gradient is far above 0.01, so that every step is clipped.
BASE = ("--train_batch_size", 8, "--max_train_steps", 2, "--checkpointing_steps", 1, "--use_ema", "--r1_gamma", 1e-2,
        "--learning_rate", 1e-4, "--max_grad_norm", 0.01, "--lr_scheduler", "linear", "--lr_warmup_steps", 0)  # fmt: skip
LORA = ("--use_lora", "--lora_rank", 4, "--fuse_lora")
PROMPTS = ("--validation_prompts", "a handwritten one")
ACCUMULATED = ("--gradient_accumulation_steps", 2, "--train_batch_size", 4, "--discriminator_norm", "group")
RUNS = {  # name: environment, flags
    "ddp": ({}, PROMPTS),
    "fsdp": (FSDP, PROMPTS),
    # Settings that save memory and change no result.
    "frugal": (FSDP | {"FSDP_OFFLOAD_PARAMS": "true", "FSDP_RESHARD_AFTER_FORWARD": "false"},
               (*PROMPTS, "--gradient_checkpointing")),
    "ddp-lora": ({}, LORA),
    "fsdp-lora": (FSDP, LORA),
    "ddp-accumulated": ({}, ACCUMULATED),
    "fsdp-accumulated": (FSDP, ACCUMULATED),
    "hybrid-accumulated": (FSDP | COPIES, ACCUMULATED),
    "ddp-bf16": ({}, ("--mixed_precision", "bf16")),
    "fsdp-bf16": (FSDP, ("--mixed_precision", "bf16")),
    "from-one": (FSDP, ("--resume_from_checkpoint", "latest", "--max_train_steps", 3)),
}  # fmt: skip


def launch(processes, *command, environment=None):
    """torchrun with a time limit. Returns the log."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=0",
               "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", *command]  # fmt: skip
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | (environment or {})
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=TIME_LIMIT
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """A folder with the outputs of `RUNS`, of runs of a single process, and what each rank held."""
    folder = tmp_path_factory.mktemp("fsdp")
    for name, limit in (("one", 2), ("from-one", 1)):
        run(world, folder / name, *BASE, "--train_batch_size", 16, *PROMPTS, "--max_train_steps", limit)
    jobs = [
        {"name": name, "environment": environment, "flags": tiny_world.flags(world, folder / name, *BASE, *flags)}
        for name, (environment, flags) in RUNS.items()
    ]
    (folder / "runs.json").write_text(json.dumps(jobs))
    launch(2, ROOT / "tests/scripts/several_runs.py", folder / "runs.json", folder)
    run(world, folder / "one", *BASE, "--train_batch_size", 16, "--max_train_steps", 3,
        "--resume_from_checkpoint", "latest")  # fmt: skip
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
            if kind:  # relative to the largest
                one, two = one / one.abs().max(), two / two.abs().max()
                assert torch.isclose(one, two, atol=1e-3, rtol=5e-2).float().mean() > shares, (group, kind)
            else:
                assert torch.isclose(one, two, atol=atol, rtol=1e-4).float().mean() > shares, group
                torch.testing.assert_close(one, two, atol=2e-4, rtol=1e-2, msg=group)


@pytest.mark.parametrize("name", ["fsdp", "frugal"])
@pytest.mark.parametrize("other", ["ddp", "one"])
def test_equals_data_parallelism_and_one_process_with_the_whole_batch(runs, name, other):
    """R1, clipping, offloading and checkpointing included."""
    assert_equal_runs(runs, name, other)

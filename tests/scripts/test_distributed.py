"""Two processes on one machine do what one process with twice the batch does."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from tests.support import tiny_world
from tests.support.runs import make_batches, prepare_run, run
from training.checkpoints.store import load_checkpoint

ROOT = Path(__file__).parent.parent.parent


def start(world, output_dir, processes, *extra, script=ROOT / "train_add.py"):
    argv = tiny_world.flags(world, output_dir, "--checkpointing_steps", 1, "--max_train_steps", 2, "--use_ema", *extra)
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=0",
               "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", script, *argv]  # fmt: skip
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300)


def launch(world, output_dir, processes, *extra):
    done = start(world, output_dir, processes, *extra)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def second_moments(checkpoint):
    tensors = checkpoint.tensors["discriminator_optimizer"]
    return torch.cat([value.flatten() for key, value in sorted(tensors.items()) if "exp_avg_sq" in key])


def test_two_ranks_train_as_one_with_double_batch(world, tmp_path):
    """Gradients of both players, R1's double backward included, and the same course of the rates.

    8 samples a rank: the virtual batch norm's groups of 8 are then the same at one rank and at two.
    """
    flags = ("--lr_scheduler", "linear", "--lr_warmup_steps", 0, "--r1_gamma", 1e-2, "--learning_rate", 1e-4)
    log = launch(world, tmp_path / "two", 2, *flags, "--train_batch_size", 8)
    assert "16 = 8 x 2 processes" in log
    launch(world, tmp_path / "one", 1, *flags, "--train_batch_size", 16)
    for step in (1, 2):
        one, two = (load_checkpoint(tmp_path / n / f"checkpoint-{step}") for n in ("one", "two"))
        assert one.state["position"] == two.state["position"] == 16 * step
        assert one.state["student_schedule"]["_last_lr"] == two.state["student_schedule"]["_last_lr"]
        for group in ("student", "student_ema", "discriminator"):
            a, b = (torch.cat([t.flatten() for t in c.tensors[group].values()]) for c in (one, two))
            # Adam divides by the gradient's own size, so that rounding of a tiny gradient may be a visible step.
            assert torch.isclose(a, b, atol=2e-5, rtol=1e-3).float().mean() > 0.999, group
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-2, msg=group)
        moment, other = (second_moments(checkpoint) for checkpoint in (one, two))
        # The second moment is the squared gradient: a sum instead of a mean over ranks would make it four times.
        torch.testing.assert_close(moment, other, rtol=5e-2, atol=1e-3 * moment.max().item())


def test_two_ranks_make_one_cache(world, tmp_path):
    """Each encodes its share; what a single process then reads is what it would have encoded itself."""
    cached = ("--center_crop", "--cache_dir_latents", tmp_path / "cache")
    launch(world, tmp_path / "two", 2, *cached)
    online, stored = (
        make_batches(prepare_run(world, tmp_path / "out", *extra), count=6) for extra in (("--center_crop",), cached)
    )
    for a, b in zip(online, stored):
        torch.testing.assert_close(a.z0_moments, b.z0_moments, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a.c, b.c, atol=1e-5, rtol=1e-5)


def test_a_signal_at_one_rank_ends_both_at_one_checkpoint(world, tmp_path):
    """The other rank hears of it, both save the same step, and no rank hangs."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import train_add
original, computed = train_add.iteration, []
def iteration(*args):
    outcome = original(*args)
    computed.append(None)
    if len(computed) == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return outcome
train_add.iteration = iteration
train_add.main()
""")
    flags = ("--max_train_steps", 25, "--checkpointing_steps", 1000)
    done = start(world, tmp_path / "out", 2, *flags, script=script)
    assert done.returncode != 0
    assert "SIGTERM: saved checkpoint-10; resume" in done.stderr
    assert "exitcode  : 143" in done.stderr
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-10"]
    assert load_checkpoint(tmp_path / "out" / "checkpoint-10").step == 10


def traffic(tmp_path, world, *extra):
    """Bytes that gradient reductions of the student exchange in one iteration at rank 0."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import train_add
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
original, sent = train_add.iteration, []
def hook(state, bucket):
    sent.append(bucket.buffer().numel())
    return allreduce_hook(None, bucket)
def iteration(players, *args):
    if not sent:
        players.losses.student.register_comm_hook(None, hook)
    outcome = original(players, *args)
    if players.accelerator.is_main_process:
        print("SENT", sum(sent), sum(p.numel() for p in players.trainable().values()), file=sys.stderr)
    return outcome
train_add.iteration = iteration
train_add.main()
""")
    done = start(world, tmp_path / "out", 2, "--max_train_steps", 1, *extra, script=script)
    assert done.returncode == 0, done.stderr[-3000:]
    sent, parameters = (int(word) for word in re.search(r"SENT (\d+) (\d+)", done.stderr).groups())
    return sent / parameters


def test_accumulated_gradients_are_exchanged_once(world, tmp_path):
    """Per iteration, not per micro-batch."""
    assert traffic(tmp_path, world, "--train_batch_size", 2, "--gradient_accumulation_steps", 4) == 1


def test_counts_of_the_data_are_those_of_all_ranks(world, tmp_path):
    """8 samples at two ranks; the one of them that cannot be read and the two small ones are counted once each."""
    tiny_world.write_flawed_images(tmp_path / "data")
    launch(world, tmp_path / "out", 2, "--train_data_dir", tmp_path / "data", "--max_train_steps", 1)
    state = load_checkpoint(tmp_path / "out" / "checkpoint-1").state
    assert (state["replaced"], state["enlarged"]) == (1, 2)


def test_ranks_that_see_different_checkpoints_end_with_one_message(world, tmp_path):
    """One of them has an older folder: both end, in bounded time, and say what they see."""
    run(world, tmp_path / "0", "--checkpointing_steps", 1, "--max_train_steps", 2)
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    shutil.rmtree(tmp_path / "1" / "checkpoint-2")
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import train_add
train_add.main([*sys.argv[1:], "--output_dir", {str(tmp_path)!r} + "/" + os.environ["RANK"]])
""")
    done = start(world, tmp_path / "unused", 2, "--resume_from_checkpoint", "latest", script=script)
    assert done.returncode != 0
    assert "the processes get different results" in done.stderr
    assert "checkpoint-1" in done.stderr
    assert "DisagreementError" not in done.stderr  # a traceback would name the class

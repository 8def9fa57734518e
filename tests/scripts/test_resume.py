"""Runs that are killed, stopped by a signal or ended by a fault, and what resuming them gives."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import train_add
from tests.support import tiny_world
from tests.support.runs import run
from training.checkpoints.store import load_checkpoint
from training.run import saving

ROOT = Path(__file__).parent.parent.parent
# A run of 5 iterations of 4 with 24 samples crosses no epoch; of 7, it does.
RUN = (
    "--use_ema",
    "--checkpointing_steps",
    2,
    "--lr_scheduler",
    "cosine",
    "--lr_warmup_steps",
    2,
    "--max_train_steps",
    7,
)


def final_state(output_dir, step):
    checkpoint = load_checkpoint(output_dir / f"checkpoint-{step}")
    return checkpoint.tensors, {k: v for k, v in checkpoint.state.items() if k != "arguments"}


def assert_same_run(a, b):
    """Bit-equal student, EMA, discriminator and both optimizers; equal counters and learning rates."""
    assert a[1] == b[1]
    assert a[0].keys() == b[0].keys()
    for group, tensors in a[0].items():
        assert tensors.keys() == b[0][group].keys()
        different = [name for name, tensor in tensors.items() if not torch.equal(tensor, b[0][group][name])]
        assert different == [], group


@pytest.fixture(scope="module")
def straight(script, tmp_path_factory):
    """The uninterrupted run that the others must equal. It is saved every 2 iterations and at its end."""
    output_dir = tmp_path_factory.mktemp("straight") / "out"
    script.run(output_dir, *RUN)
    return output_dir


def killer(script, output_dir, at_iteration, *extra, before="iteration"):
    """Run in a process that kills itself with SIGKILL where, after `at_iteration` calls, `before` is called again."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import torch; torch.set_num_threads(1)
import train_add, {script.module.__name__} as script
original, computed = train_add.{before}, []
def deadly(*args):
    if len(computed) == {at_iteration}:
        os.kill(os.getpid(), signal.SIGKILL)
    computed.append(None)
    return original(*args)
train_add.{before} = deadly
script.main(sys.argv[1:])
"""
    argv = tiny_world.flags(script.world, output_dir, *RUN, *extra)
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize(("at_iteration", "before"), [(3, "iteration"), (5, "student_step"), (6, "iteration")])
def test_killed_and_resumed_is_bit_equal(script, straight, tmp_path, at_iteration, before):
    """SIGKILL in mid-epoch, between the two players' steps, and across an epoch's end; then it is resumed."""
    output_dir = tmp_path / "out"
    assert killer(script, output_dir, at_iteration, before=before).returncode == -signal.SIGKILL
    assert (output_dir / f"checkpoint-{at_iteration // 2 * 2}").is_dir()
    assert not (output_dir / "model_index.json").exists()
    script.run(output_dir, *RUN, "--resume_from_checkpoint", "latest")
    assert_same_run(final_state(output_dir, 7), final_state(straight, 7))
    ours, theirs = (
        load_file(d / script.network / "diffusion_pytorch_model.safetensors") for d in (output_dir, straight)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_resumes_with_accumulation_are_bit_equal(world, tmp_path):
    """Stopped twice, with two micro-batches an iteration and data workers."""
    extra = ("--gradient_accumulation_steps", 2, "--train_batch_size", 2, "--dataloader_num_workers", 1,
             "--checkpointing_steps", 1, "--use_ema")  # fmt: skip
    run(world, tmp_path / "straight", *extra, "--max_train_steps", 3)
    for steps in (1, 2, 3):
        run(world, tmp_path / "parts", *extra, "--max_train_steps", steps, "--resume_from_checkpoint", "latest")
    assert_same_run(final_state(tmp_path / "parts", 3), final_state(tmp_path / "straight", 3))


def test_damaged_checkpoint_is_passed_over(script, straight, tmp_path):
    """The newest checkpoint has a flipped bit: the one before it is used, and the end is the same."""
    output_dir = tmp_path / "out"
    script.run(output_dir, *RUN)
    victim = output_dir / "checkpoint-7" / "student.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    script.run(output_dir, *RUN, "--resume_from_checkpoint", "latest")
    assert_same_run(final_state(output_dir, 7), final_state(straight, 7))


def signalled(monkeypatch, at_iteration, *signals):
    """From now on a run gets `signals` while it computes this iteration."""
    original, computed = train_add.iteration, []

    def iteration(*args):
        outcome = original(*args)
        computed.append(None)
        for signum in signals if len(computed) == at_iteration else ():
            os.kill(os.getpid(), signum)
        return outcome

    monkeypatch.setattr(train_add, "iteration", iteration)


@pytest.mark.parametrize(("signum", "at_iteration"), [(signal.SIGTERM, 3), (signal.SIGUSR1, 4), (signal.SIGINT, 1)])
def test_a_signal_ends_the_run_at_a_checkpoint(script, straight, tmp_path, monkeypatch, capsys, signum, at_iteration):
    """Off the beat of --checkpointing_steps and on it; the status says which signal, and resuming is bit-equal."""
    output_dir, saved, before = tmp_path / "out", [], signal.getsignal(signum)
    save = saving.save_checkpoint
    monkeypatch.setattr(
        saving, "save_checkpoint", lambda out, step, *rest: saved.append(step) or save(out, step, *rest)
    )
    with monkeypatch.context() as patch:
        signalled(patch, at_iteration, signum)
        with pytest.raises(SystemExit) as ended:
            script.run(output_dir, *RUN)
    assert ended.value.code == 128 + signum
    assert f"{signum.name}: saved checkpoint-{at_iteration}" in capsys.readouterr().err
    assert saved == sorted({*range(2, at_iteration, 2), at_iteration})
    assert not (output_dir / "model_index.json").exists()
    assert signal.getsignal(signum) is before
    script.run(output_dir, *RUN, "--resume_from_checkpoint", "latest")
    assert_same_run(final_state(output_dir, 7), final_state(straight, 7))


def test_a_signal_in_the_last_iteration_lets_the_run_end(world, tmp_path, monkeypatch):
    signalled(monkeypatch, 2, signal.SIGTERM)
    run(world, tmp_path / "out")
    assert (tmp_path / "out" / "model_index.json").exists()


def in_a_process(code):
    code = f"import os, signal, sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def test_a_second_signal_ends_the_process_at_once():
    done = in_a_process("""
from training.processes.interruption import Interruption
with Interruption() as interruption:
    os.kill(os.getpid(), signal.SIGUSR1)
    print(interruption.received, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still there")
""")
    assert done.stdout == f"{int(signal.SIGUSR1)}\n"
    assert done.returncode == -signal.SIGTERM


def test_a_data_worker_still_ends_at_its_first_signal():
    """It inherits the handler; were it to note the signal only, the loader could not end it."""
    done = in_a_process("""
import time
from training.processes.interruption import Interruption
with Interruption() as interruption:
    ready, started = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(started, b"1")  # before this a signal could be lost in the fork
        time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    os.kill(worker, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]), interruption.received)
""")
    assert done.stdout == f"{-signal.SIGTERM} 0\n", done.stderr


def test_checkpoint_holds_no_pickle_and_no_token(straight):
    files = {p.name for p in (straight / "checkpoint-6").iterdir()}
    assert files == {
        "student.safetensors", "student_ema.safetensors", "student_optimizer.safetensors", "discriminator.safetensors",
        "discriminator_optimizer.safetensors", "state.json", "manifest.json",
    }  # fmt: skip
    assert "hub_token" not in load_checkpoint(straight / "checkpoint-6").state["arguments"]


def test_resume_with_another_objective_is_refused(script, straight, capsys):
    with pytest.raises(SystemExit):
        script.run(straight, *RUN, "--resume_from_checkpoint", "latest", "--distillation_weighting", "sds",
            "--learning_rate", 1e-4)  # fmt: skip
    error = capsys.readouterr().err
    assert re.search(r"distillation_weighting: '?exponential'? -> '?sds'?", error)
    assert "learning_rate" in error


def test_the_effective_batch_size_is_kept_but_its_parts_may_change(world, tmp_path, capsys):
    """The parts also decide the order of a stream, so that it fixes them too."""
    flags = ("--resume_from_checkpoint", "latest")
    for name, extra in (("indexed", ()), ("streamed", ("--streaming",))):
        run(world, tmp_path / name, *flags, *extra, "--max_train_steps", 1)
    halves = ("--train_batch_size", 2, "--gradient_accumulation_steps", 2)
    run(world, tmp_path / "indexed", *flags, *halves)
    with pytest.raises(SystemExit):
        run(world, tmp_path / "indexed", *flags, "--train_batch_size", 2)
    assert "effective_batch_size (samples per iteration, over all processes): 4 -> 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(world, tmp_path / "streamed", *flags, "--streaming", *halves)
    assert "--train_batch_size: 4 -> 2" in capsys.readouterr().err


def test_the_last_iteration_is_saved_before_the_student_is_published(world, tmp_path, monkeypatch):
    """A fault of the final write, such as a full disk, costs no iteration."""
    monkeypatch.setattr("training.publishing.publisher.write_output", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        run(world, tmp_path / "out", "--max_train_steps", 3, "--checkpointing_steps", 1000)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_resume_on_other_data_or_another_model_is_refused(world, tmp_path, capsys):
    """All of it in one message; --allow_changed continues knowingly, and the card says so."""
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    run(copy, tmp_path / "out", "--max_train_steps", 1)
    lines = (copy / "data" / "metadata.jsonl").read_text().splitlines()
    (copy / "data" / "metadata.jsonl").write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    for image in sorted((copy / "data").glob("*.png"))[len(lines) // 2 :]:
        image.unlink()
    unet = copy / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(unet).items()}, unet)
    flags = ("--resume_from_checkpoint", "latest", "--max_train_steps", 2, "--seed", 5)
    with pytest.raises(SystemExit):
        run(copy, tmp_path / "out", *flags)
    error = capsys.readouterr().err
    for name in ("data (", "teacher (", "student (", "--seed: 0 -> 5"):
        assert name in error
    run(copy, tmp_path / "out", *flags, "--allow_changed", "data", "teacher", "student", "seed")
    assert "--seed: 0 -> 5" in (tmp_path / "out" / "README.md").read_text()

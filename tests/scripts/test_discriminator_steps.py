"""Several updates of the discriminator for one of the student: what each is computed on, and where the stream is."""

import pytest
import torch

import train_add
from tests.support.runs import digest, make_batches, prepare_run
from train_add import discriminator_step, iteration


def test_an_iteration_is_the_discriminators_steps_one_by_one_and_then_the_students(world, tmp_path):
    """Bit for bit: two updates of D alone on the first batches, then an ordinary iteration on the third."""
    several = prepare_run(world, tmp_path / "a", "--discriminator_steps", 3)
    ordinary = prepare_run(world, tmp_path / "b")
    figures, skipped = iteration(several.players, make_batches(several, count=3))
    first, second, third = make_batches(ordinary, count=3)
    for batch in (first, second):
        discriminator_step(ordinary.players, [batch], None)
    iteration(ordinary.players, [third])
    assert skipped == 0
    assert figures["loss/discriminator"].isfinite()
    for part in ("student", "heads"):
        assert digest(getattr(several.players, part)) == digest(getattr(ordinary.players, part)), part
    steps = {name: u.optimizer.state[u.parameters[0]]["step"].item() for name, u in several.players.updaters.items()}
    assert steps == {"student": 1, "discriminator": 3}


def test_accumulated_micro_batches_belong_to_their_own_update(world, tmp_path):
    """Two updates of two micro-batches each: the first two move D alone, the last two both."""
    several = prepare_run(
        world, tmp_path / "a", "--discriminator_steps", 2, "--gradient_accumulation_steps", 2, "--train_batch_size", 2
    )
    ordinary = prepare_run(world, tmp_path / "b", "--gradient_accumulation_steps", 2, "--train_batch_size", 2)
    iteration(several.players, make_batches(several, batch_size=2, count=4))
    batches = make_batches(ordinary, batch_size=2, count=4)
    discriminator_step(ordinary.players, batches[:2], None)
    iteration(ordinary.players, batches[2:])
    assert digest(several.players.student) == digest(ordinary.players.student)
    assert digest(several.players.heads) == digest(ordinary.players.heads)


def test_an_iteration_reads_new_samples_for_every_update(world, tmp_path):
    """The position in the stream is the iteration times the samples that one reads."""
    prepared = prepare_run(world, tmp_path / "a", "--discriminator_steps", 3, "--max_train_steps", 2)
    read = []
    for loaded in train_add.micro_batches(prepared):
        read.append([position for samples in loaded for position in samples["positions"].tolist()])
        prepared.state.advance(prepared.samples_per_iteration)
    assert read == [list(range(12)), list(range(12, 24))]
    assert prepared.state.position == 24
    assert prepared.effective_batch_size == 4


def test_epochs_are_counted_by_samples_read(world, tmp_path):
    """24 samples, 4 an update: an epoch is 6 iterations with one update of D and 2 with three."""
    epochs = ("--num_train_epochs", 2)
    for steps, expected in ((1, 12), (3, 4)):
        prepared = prepare_run(world, tmp_path / "a", *epochs, "--discriminator_steps", steps)
        assert train_add.total_iterations(without_length(prepared.options), 24, 1) == expected


def without_length(options):
    import dataclasses

    return dataclasses.replace(options, optimization=dataclasses.replace(options.optimization, max_train_steps=None))


def test_a_skipped_step_of_the_discriminator_is_counted_whichever_it_is(world, tmp_path):
    prepared = prepare_run(world, tmp_path / "a", "--discriminator_steps", 2)
    bad, good = make_batches(prepared, count=2)
    bad.x0[0, 0, 0, 0] = float("nan")
    _, skipped = iteration(prepared.players, [bad, good])
    assert skipped == 1
    assert all(p.isfinite().all() for p in prepared.players.heads.parameters())


@pytest.mark.parametrize("steps", [1, 2])
def test_warm_up_of_the_students_timesteps_ends_after_its_iterations(world, tmp_path, steps):
    flags = ("--student_timestep_warmup_steps", 2, "--student_timestep_probabilities", 0, 0, 0, 1,
             "--discriminator_steps", steps, "--max_train_steps", 4)  # fmt: skip
    prepared = prepare_run(world, tmp_path / "a", *flags)
    drawn = []
    for loaded in train_add.micro_batches(prepared):
        batches = [prepared.make_batch(samples, prepared.state.step) for samples in loaded]
        drawn.append(set(torch.cat([batch.noise.s for batch in batches]).tolist()))
        prepared.state.advance(prepared.samples_per_iteration)
    assert all(found <= {249, 499} for found in drawn[:2])
    assert drawn[2:] == [{999}, {999}]

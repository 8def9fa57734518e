#!/usr/bin/env python
"""Distil Stable Diffusion 1.x or 2.x into a student that samples in 1 to 4 steps (ADD, 2311.17042).

This file contains the training loop. `train` prepares a run, iterates, and publishes the student; `discriminator_step`
and `student_step` are the two updates of an iteration. They call the losses in distillation/losses.py and the
discriminator in discriminator/; everything else is in training/.

Names follow the paper: x0 is a real image and z0 its latent, s a student timestep and t a teacher timestep, x^_theta
the student's sample and x^_psi the teacher's target, F_k the features and D_k the heads of the discriminator.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from tqdm.contrib.logging import logging_redirect_tqdm

from distillation.losses import Batch, StudentSample
from distillation.noise import derive_seed
from training.command import first_line, run_command
from training.data.dataset import load_rows, make_dataloader, make_reader
from training.data.sources import count_rows
from training.encoding.batches import make_batch_maker
from training.encoding.cache import check_cache, open_embeddings
from training.models.discriminators import check_taps, make_discriminator
from training.models.families import Family, StableDiffusion, open_families
from training.models.networks import check_latent_spaces, load_networks
from training.monitoring.description import describe
from training.monitoring.metrics import average
from training.monitoring.progress import READ_EVERY, Progress
from training.monitoring.validation import Validator
from training.options import Options, make_parser
from training.options.derived import make_schedules, total_iterations
from training.options.memory_advice import advise_when_out_of_memory
from training.options.refusals import refuse
from training.options.resuming import check_resumed
from training.processes.accelerator import end_training, make_accelerator
from training.processes.interruption import Interrupted, Interruption
from training.publishing.publisher import Publisher, output_folder
from training.run.players import Players, make_players
from training.run.resume import checkpoint_to_resume, choose_seed, run_arguments
from training.run.run import Run
from training.run.saving import save, tracker_config
from training.run.state import RunState, unpack_run
from training.sharding.networks import no_sync

logger = logging.getLogger("train_add")
GRADIENTS_EVERY = 100  # iterations between measurements of the gradients at x^_theta


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process."""
    parser = make_parser(first_line(__doc__))
    run_command(parser, argv, lambda args: train(Options.of(args), StableDiffusion))


def iteration(
    players: Players, micro_batches: list[Batch], measures_gradients: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """One iteration of ADD (paper 3.1): the discriminator's steps, then the student's.

    Each of `--discriminator_steps` has batches of its own, and the student's step uses those of the last one. If these
    are one micro-batch, the student's sample is computed once and shared by both steps. With several, sharing would
    require keeping all their graphs until the discriminator is updated, which takes the memory that accumulation saves.
    Each step therefore samples again. The noise is part of the batch, so both samples are the same.

    Args:
        micro_batches: of all steps of the discriminator, one after another.
        measures_gradients: whether the figures include the norms of the gradients of the two losses at x^_theta.

    Returns:
        Scalars by name on the device, averaged over the micro-batches; and a scalar tensor that is 1.0 if either step
        was skipped because of a non-finite loss or gradient, else 0.0.
    """
    size = len(micro_batches) // players.discriminator_steps
    *earlier, last = (micro_batches[i : i + size] for i in range(0, len(micro_batches), size))
    outcomes = [discriminator_step(players, batches, None) for batches in earlier]
    shared = players.losses.sample(last[0]) if len(last) == 1 else None
    if players.heads is not None:
        outcomes.append(discriminator_step(players, last, shared))
    figures, skipped = student_step(players, last, shared, measures_gradients)
    if players.ema is not None:
        players.ema.step(players.trainable().values())
    of_discriminator = average([found for found, _ in outcomes])
    return of_discriminator | figures, torch.stack([skipped, *(of_d for _, of_d in outcomes)]).max()


def discriminator_step(
    players: Players, micro_batches: list[Batch], shared: StudentSample | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Update the discriminator on real images and detached samples of the student (paper Eq. 3).

    Minimizes sum_k E[max(0, 1 - D_k(F_k(x0)))] + gamma R1 + E[max(0, 1 + D_k(F_k(x^_theta)))].
    """
    losses = players.losses

    def eq_3(batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            x_theta = shared or losses.sample(batch)
        return losses.discriminator_losses(batch, x_theta)

    figures, total = _backward(players.accelerator, losses.heads, micro_batches, eq_3)
    return _update(players, "discriminator", figures, total)


def student_step(
    players: Players, micro_batches: list[Batch], shared: StudentSample | None, measures_gradients: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """Update the student with the adversarial and the distillation loss (paper Eqs. 1, 2 and 4).

    Minimizes -sum_k E[D_k(F_k(x^_theta))] + lambda E[c(t) || x^_theta - sg(x^_psi(x^_theta,t ; t)) ||^2].
    """
    losses = players.losses

    def eq_1(batch: Batch) -> dict[str, Tensor]:
        x_theta = shared or losses.sample(batch)
        found = losses.student_losses(batch, x_theta)
        if measures_gradients:
            scaler = players.accelerator.scaler
            found |= losses.gradient_norms(x_theta, found, 1.0 if scaler is None else scaler.get_scale())
        return found

    figures, total = _backward(players.accelerator, losses.student, micro_batches, eq_1)
    return _update(players, "student", figures, total)


def _backward(
    accelerator: Accelerator,
    network: nn.Module | None,
    micro_batches: list[Batch],
    losses_of: Callable[[Batch], dict[str, Tensor]],
) -> tuple[dict[str, Tensor], Tensor]:
    """Accumulate the gradients of the mean loss over micro-batches. Returns the other scalars' means, and the loss."""
    n, scalars, total = len(micro_batches), [], torch.zeros((), device=accelerator.device)
    for i, batch in enumerate(micro_batches):
        # Gradients are only synchronized for the last micro-batch. DistributedDataParallel decides this in the forward
        # pass, so the context covers both the forward and the backward pass.
        with nullcontext() if i == n - 1 else no_sync(network):
            losses = losses_of(batch)
            loss = losses.pop("total") / n
            accelerator.backward(loss)
        total = total + loss.detach()
        scalars.append(losses)
    return average(scalars), total


def _update(players: Players, name: str, figures: dict[str, Tensor], loss: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Clip a player's gradients and update its weights. Returns all figures, and 1.0 if the update was skipped."""
    updater = players.updaters[name]
    norm, skipped = updater.update(loss)
    more = {"gradient_norm": norm, **updater.figures}
    return figures | {f"{figure}/{name}": value for figure, value in more.items()}, skipped


def prepare(options: Options, family: type[Family], accelerator: Accelerator) -> Run:
    """Make the parts of a run. Invalid options, data and checkpoints are refused before any weight is loaded.

    Args:
        options: options that `refuse` has checked.
        family: model family of the student.
        accelerator: accelerator from `make_accelerator`.

    Raises:
        UserError: the data, a model or the checkpoint cannot be used.
    """
    student, teacher = open_families(options, family)
    check_latent_spaces(options, student, teacher)
    check_taps(options, teacher)
    schedules = make_schedules(options, student.scheduler, teacher.scheduler)
    checkpoint = checkpoint_to_resume(options, accelerator)
    seed = choose_seed(options, checkpoint, accelerator)
    rows, reader = load_rows(options, seed), make_reader(options, seed)
    arguments = run_arguments(options, seed, accelerator, rows, student, teacher)
    check_cache(options, accelerator, rows, student, teacher)
    changed = []
    if checkpoint is not None:
        changed = check_resumed(checkpoint.path.name, checkpoint.state["arguments"], arguments, options)

    set_seed(derive_seed(seed) % 2**32)  # initial weights are the same in all processes
    networks = load_networks(options, student, teacher, accelerator)
    embeddings = open_embeddings(options, accelerator, rows, reader, student, teacher, networks.latents)
    discriminator = make_discriminator(options, networks, embeddings.condition_dim, accelerator)
    total_steps = total_iterations(options, count_rows(rows), accelerator.num_processes)
    players = make_players(options, accelerator, networks, discriminator, schedules, total_steps)
    state = RunState(seed) if checkpoint is None else unpack_run(checkpoint, players, accelerator)
    state.changed += changed
    make_batch = make_batch_maker(options, student, teacher, networks.latents, embeddings, seed, accelerator)
    return Run(
        options, accelerator, student, teacher, schedules, networks, players, state, rows, reader, embeddings,
        make_batch, arguments, total_steps,
    )  # fmt: skip


def train(options: Options, family: type[Family]) -> None:
    """Distil a student of `family`. The result is written to `--output_dir`, and to the Hub with `--push_to_hub`.

    Raises:
        UserError: the options, the data or a model cannot be used, or the run has diverged.
        Interrupted: a signal has ended the run after a checkpoint was saved.
    """
    refuse(options)
    accelerator = make_accelerator(options)
    with (
        advise_when_out_of_memory(options),
        output_folder(options, accelerator),
        Interruption() as interruption,
        logging_redirect_tqdm(),
    ):
        run = prepare(options, family, accelerator)
        publisher = Publisher(run)
        accelerator.init_trackers(options.output.tracker_project_name, config=tracker_config(run.arguments))
        logger.info("ADD distillation\n%s", describe(run))
        progress, validator = Progress(run), Validator(run)
        if run.state.step == 0:
            validator.validate()
        for loaded in micro_batches(run):
            batches = [run.make_batch(samples, run.state.step) for samples in loaded]
            # The dropout of an adapter is the only operation that uses the global random state.
            set_seed(derive_seed(run.state.seed, run.state.step, accelerator.process_index, 2) % 2**32)
            figures, skipped = iteration(run.players, batches, run.state.step % GRADIENTS_EVERY == 0)
            run.state.advance(run.samples_per_iteration)
            progress.add(figures, skipped, loaded)

            is_last = run.state.step == run.total_steps
            if is_last or run.state.step % READ_EVERY == 0:
                progress.show()
            if is_last or run.state.step % options.validation.validation_steps == 0:
                validator.validate()
            # Agreeing on a signal synchronizes the processes, so it is done only when the figures are read as well.
            may_end = not is_last and (accelerator.num_processes == 1 or run.state.step % READ_EVERY == 0)
            signum = interruption.agreed(accelerator) if may_end else 0
            if is_last or signum or run.state.step % options.output.checkpointing_steps == 0:
                progress.show()  # raises an error if too many steps in a row were skipped
                save(run)
                publisher.push_checkpoint()
            if signum:
                end_training(accelerator)
                raise Interrupted(signum, run.state.step)
        progress.close()
        publisher.publish()
        end_training(accelerator)


def micro_batches(run: Run) -> Iterator[list[dict[str, Any]]]:
    """Yield the samples of each remaining iteration, one dictionary per micro-batch."""
    optimization = run.options.optimization
    count = optimization.gradient_accumulation_steps * run.options.discriminator.discriminator_steps
    loader = make_dataloader(
        run.rows,
        run.reader,
        batch_size=optimization.train_batch_size,
        rank=run.accelerator.process_index,
        world_size=run.accelerator.num_processes,
        start_position=run.state.position,
        num_workers=run.options.data.dataloader_num_workers,
    )
    for _ in range(run.state.step, run.total_steps):
        yield list(islice(loader, count))


if __name__ == "__main__":
    main()

"""A run: its parts made once, then iterations: train, average, log, validate, checkpoint, publish."""

import argparse
import logging
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from distillation.noise import derive_seed
from pipelines import student_scheduler
from training import accelerator as setup
from training.checkpoints.run_state import RunState
from training.checkpoints.store import find_checkpoint, load_checkpoint, save_checkpoint
from training.data.dataset import load_image_text_dataset, make_dataloader
from training.data.reader import SampleReader
from training.encoding.batches import BatchMaker
from training.encoding.cache import cache_fingerprint, is_there, open_cache
from training.encoding.embeddings import Embeddings, OnlineEmbeddings
from training.errors import UserError
from training.interruption import Interrupted, Interruption
from training.iteration import train_iteration
from training.models import networks
from training.models.families import Family, open_families
from training.optimization import Updater, discriminator_optimizer, learning_rate_schedule, student_optimizer
from training.options import derived as resolve
from training.options.memory_advice import advice
from training.options.refusals import check_arguments
from training.progress import READ_EVERY, Monitor
from training.publishing.checkpoint_branch import CheckpointPusher
from training.publishing.hub import check_push, push_published
from training.publishing.output import write_output
from training.publishing.single_file import export_single_file
from training.validation import averaged, validate

logger = logging.getLogger(__name__)


class Trainer:
    """A run's parts, made once, and the loop over them.

    Args:
        student, teacher: opened, not yet loaded; one object where one repo is both.
    """

    def __init__(self, student: Family, teacher: Family, args: argparse.Namespace):
        self.args, self.student_family, self.teacher_family = args, student, teacher
        # Everything that can be refused is refused before any weight is loaded.
        self.schedules = resolve.make_schedules(args, student.scheduler, teacher.scheduler)
        if args.distillation_weight > 0 and student.scaling_factor != teacher.scaling_factor:
            networks.check_other_latent_space(args)
        self.accelerator = setup.make_accelerator(args)
        self.pusher = None
        if args.push_to_hub and self.accelerator.is_main_process:
            check_push(args, args.hub_private_repo)
            self.pusher = CheckpointPusher(args, args.hub_private_repo) if args.push_every_checkpoint else None
        resume_from = self._checkpoint_to_resume()
        self.seed = self._choose_seed(resume_from)
        self._load_data()
        self.families = {"student": student} | ({} if teacher is student else {"teacher": teacher})
        if args.cache_dir_latents is not None:
            self.fingerprint = cache_fingerprint(args, self.accelerator, self.rows, self.families)
            is_there(args, self.fingerprint)  # refuses another one
        self._load_networks()
        if resume_from is not None:
            self.state.load(resume_from, args, self.accelerator)
            logger.info("Continuing from %s at iteration %d", resume_from.path.name, self.state.step)
        self.monitor = Monitor(self.accelerator, args, self.global_batch, self.state.skipped)

    def _checkpoint_to_resume(self):
        if self.args.resume_from_checkpoint is None:
            return None
        path = find_checkpoint(self.args.output_dir, self.args.resume_from_checkpoint)
        if path is None:
            logger.warning("No checkpoint in %s yet: starting afresh", self.args.output_dir)
        return None if path is None else load_checkpoint(path)

    def _choose_seed(self, resume_from) -> int:
        """The flag's; without it the checkpoint's; without that a fresh one, the same at every process."""
        if self.args.seed is not None:
            return self.args.seed
        if resume_from is not None:
            return resume_from.state["seed"]
        seed = torch.tensor(random.SystemRandom().randrange(2**31), device=self.accelerator.device)
        return int(self.accelerator.gather(seed.reshape(1))[0])

    def _load_data(self) -> None:
        args = self.args
        self.rows = load_image_text_dataset(
            dataset_name=args.dataset_name,
            dataset_config_name=args.dataset_config_name,
            train_data_dir=args.train_data_dir,
            image_column=args.image_column,
            caption_column=args.caption_column,
            max_train_samples=args.max_train_samples,
            streaming=args.streaming,
            cache_dir=args.cache_dir,
            seed=self.seed,
        )
        self.reader = SampleReader(
            args.image_column, args.caption_column, args.resolution, args.center_crop, args.random_flip, self.seed
        )
        self.global_batch = args.train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
        self.num_samples = None if args.streaming else len(self.rows)
        self.total_steps = args.max_train_steps
        if self.total_steps is None:
            self.total_steps = max(1, args.num_train_epochs * self.num_samples // self.global_batch)

    def _load_networks(self) -> None:
        args, accelerator = self.args, self.accelerator
        student, teacher = self.student_family, self.teacher_family
        dtype, device = resolve.frozen_dtype(accelerator), accelerator.device
        set_seed(derive_seed(self.seed) % 2**32)  # initial weights: alike at every process
        self.networks = networks.load_networks(args, student, teacher, dtype, device)
        self.embeddings = self._make_embeddings(dtype, device)
        discriminator = None
        if args.adversarial_weight > 0:
            discriminator = networks.make_discriminator(args, device, dtype, self.embeddings.condition_dim)
        heads = None if discriminator is None else discriminator.heads
        unet = self.networks.student
        trainable = [p for p in unet.parameters() if p.requires_grad]
        ema = EMAModel(trainable, decay=args.ema_decay, foreach=True) if args.use_ema else None
        scale = self.global_batch if args.scale_lr else 1
        updaters = {"student": self._updater(student_optimizer(trainable, args, scale))}
        if heads is not None:
            updaters["discriminator"] = self._updater(discriminator_optimizer(heads.parameters(), args, scale))
        self.state = RunState(unet, heads, updaters, ema, self.seed)
        prepared = accelerator.prepare_model(unet)
        self.losses = networks.make_losses(args, self.networks, prepared, discriminator, self.schedules, accelerator)
        self.make_batch = BatchMaker(
            args, student, teacher, self.networks.latents, self.embeddings, resolve.noise_settings(args, self.seed),
            None if args.condition_image_at_last_timestep else len(self.schedules[0]) - 1, device, dtype,
        )  # fmt: skip

    def _make_embeddings(self, dtype: torch.dtype, device: torch.device) -> Embeddings:
        """The encoders, or the cache in their place."""
        args = self.args

        def encoders() -> OnlineEmbeddings:
            return OnlineEmbeddings(self.networks.latents, *networks.load_conditions(args, device, dtype))

        if args.cache_dir_latents is None:
            return encoders()
        embeddings = open_cache(
            args, self.accelerator, self.rows, self.reader, self.families, self.fingerprint, encoders
        )
        for family in self.families.values():
            family.move_text_encoders(torch.device("cpu"))
        return embeddings

    def _updater(self, optimizer: torch.optim.Optimizer) -> Updater:
        schedule = learning_rate_schedule(optimizer, self.args, self.total_steps)
        return Updater(self.accelerator, self.accelerator.prepare(optimizer), schedule, self.args.max_grad_norm)

    def describe(self) -> str:
        """The resolved configuration."""
        discriminator = self.losses.discriminator
        return setup.describe(
            self.args,
            self.accelerator,
            {
                "teacher_prediction": self.schedules[1].prediction_type,
                "student_prediction": self.schedules[0].prediction_type,
                "zero_snr": resolve.zero_snr_mode(self.args, self.schedules[0].prediction_type),
                "student_parameters": sum(p.numel() for p in self.state.trainable().values()),
                "head_parameters": sum(p.numel() for p in discriminator.heads.parameters()) if discriminator else 0,
                "num_taps": discriminator.feature_network.num_taps if discriminator else 0,
                "input_size": discriminator.feature_network.input_size if discriminator else 0,
                "num_samples": self.num_samples or "streamed",
                "total_steps": self.total_steps,
                "seed": self.seed,
            },
        )

    def run(self) -> None:
        """Train to the end, then publish."""
        args, accelerator, state = self.args, self.accelerator, self.state
        accelerator.init_trackers(args.tracker_project_name, config=_tracker_config(args))
        logger.info("ADD distillation\n%s", self.describe())
        loader = make_dataloader(
            self.rows,
            self.reader,
            batch_size=args.train_batch_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            start_position=state.position,
            num_workers=args.dataloader_num_workers,
        )
        progress = tqdm(
            total=self.total_steps, initial=state.step, desc="ADD", unit="it", smoothing=0.05,
            disable=not accelerator.is_local_main_process,
        )  # fmt: skip
        with Interruption() as interruption:
            for micro_batches in _micro_batches(loader, args.gradient_accumulation_steps):
                if state.step >= self.total_steps:
                    break
                self._iteration(micro_batches)
                progress.update(1)
                self._between_iterations(progress, interruption)
        progress.close()
        self._finish()

    def _between_iterations(self, progress: tqdm, interruption: Interruption) -> None:
        """Log, validate and save where it is time to, and end the run where a signal asks for it."""
        args, step = self.args, self.state.step
        is_end, is_read = step == self.total_steps, step % READ_EVERY == 0
        if is_read or is_end:
            self.monitor.read(self.state, progress)
        if args.validation_prompts and (step % args.validation_steps == 0 or is_end):
            self._validate()
        if is_due := step % args.checkpointing_steps == 0:
            self._checkpoint(progress)
        # Several processes have to agree, which makes them wait for each other: no more often than they do anyway.
        if not is_end and (is_read or self.accelerator.num_processes == 1):
            signum = interruption.agreed(self.accelerator)
            if signum and not is_due:
                self._checkpoint(progress)
            if signum:
                self.accelerator.end_training()
                raise Interrupted(signum, step)

    def _iteration(self, micro_batches: list[dict]) -> None:
        state = self.state
        # Dropout of an adapter is the one thing that draws from the global state.
        set_seed(derive_seed(self.seed, state.step, self.accelerator.process_index, 2) % 2**32)
        batches = [self.make_batch(loaded, state.step) for loaded in micro_batches]
        values, skipped = train_iteration(self.losses, batches, self.state.updaters, self.accelerator)
        if state.ema is not None:
            state.ema.step(state.trainable().values())
        self.monitor.add(values, skipped, [int(i) for loaded in micro_batches for i in loaded["sample_ids"]])
        state.step += 1
        state.position += self.global_batch
        state.replaced += sum(loaded["replaced"] for loaded in micro_batches)

    def _scheduler(self):
        prediction_type = self.schedules[0].prediction_type
        return student_scheduler(
            self.student_family.scheduler.config,
            prediction_type,
            self.args.student_timesteps,
            rescale_betas_zero_snr=resolve.zero_snr_mode(self.args, prediction_type) == "rescale",
        )

    def _validate(self) -> None:
        if self.accelerator.is_main_process:
            self.student_family.move_text_encoders(self.accelerator.device)
            with averaged(self.state.student, self.state.ema) as student:
                pipeline = self.student_family.pipeline(student, self._scheduler())
                path = validate(self.accelerator, pipeline, self.args, self.seed, self.state.step)
            if self.args.cache_dir_latents is not None:
                self.student_family.move_text_encoders(torch.device("cpu"))
            logger.info("Samples at iteration %d: %s", self.state.step, path)
        self.accelerator.wait_for_everyone()

    def _checkpoint(self, progress: tqdm) -> None:
        self.monitor.read(self.state, progress)  # never save what a run of skipped steps has just condemned
        if self.accelerator.is_main_process:
            tensors, state = self.state.save(self.args, self.accelerator)
            save_checkpoint(self.args.output_dir, self.state.step, tensors, state, self.args.checkpoints_total_limit)
            if self.pusher is not None:
                self.pusher.push(self._write, self.state.step)
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path) -> None:
        facts = {
            "iterations": self.state.step,
            "effective batch": self.global_batch,
            "seed": self.seed,
            "prediction type": self.schedules[0].prediction_type,
        }
        with averaged(self.state.student, self.state.ema) as student:
            write_output(self.args, folder, self.student_family, student, self._scheduler(), facts)

    def _finish(self) -> None:
        accelerator, args = self.accelerator, self.args
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self._write(Path(args.output_dir))
            logger.info("Saved the student to %s", Path(args.output_dir).resolve())
            if args.export_single_file is not None:
                export_single_file(args.output_dir, args.export_single_file)
            if self.pusher is not None:
                self.pusher.close()
            if args.push_to_hub:
                push_published(args, args.hub_private_repo)
        accelerator.end_training()


def _micro_batches(loader: Iterator[dict], size: int) -> Iterator[list[dict]]:
    """Consecutive micro-batches in groups of `size`."""
    while micro_batches := list(islice(loader, size)):
        yield micro_batches


def _tracker_config(args: argparse.Namespace) -> dict:
    """The flags as trackers take them: numbers and text, and no token."""
    return {k: v if isinstance(v, int | float | str) else str(v) for k, v in vars(args).items() if k != "hub_token"}


class OutOfMemory(UserError):
    """The device's memory does not suffice: says which flags would help."""


def run_training(args: argparse.Namespace, family: type[Family]) -> None:
    """Train a student of `family` as the command line says."""
    try:
        check_arguments(args)
        train(*open_families(args, family), args)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"out of memory: {error}\n{advice(args)}") from error


def train(student: Family, teacher: Family, args: argparse.Namespace) -> None:
    """Train a student of the family `student` as `args` says; the result is in `args.output_dir`."""
    Trainer(student, teacher, args).run()

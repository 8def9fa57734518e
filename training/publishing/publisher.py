"""The output of a run: locks the output folder, and publishes the student there and on the Hub."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from training.checkpoints.folder_lock import lock_folder_of_run
from training.options import Options
from training.options.derived import make_student_scheduler, uses_latent_discriminator
from training.processes.main_process import on_main_process
from training.publishing.hub.checkpoint_branch import CheckpointPusher
from training.publishing.hub.push import check_push, push_published
from training.publishing.output import write_output
from training.publishing.output_folder import check_output_folder
from training.publishing.single_file.export import check_export_file, export_single_file
from training.publishing.whole_student import whole_student
from training.run.run import Run

logger = logging.getLogger(__name__)


@contextmanager
def output_folder(options: Options, accelerator: Accelerator) -> Iterator[None]:
    """Context manager that checks `--output_dir` and the access to the Hub, and locks the folder against other runs.

    Raises:
        OptionError: the folder contains files that a run could damage, or cannot be written to.
        FolderInUse: another run is writing there.
        PublishError: the repo of `--push_to_hub` cannot be pushed to.
    """
    flat, names = options.flat(), ("dataset_name", "train_data_dir", "cache_dir_latents")
    models = [name for name in flat if "_model" in name and not name.endswith(("_revision", "hub_model_id"))]
    read = {f"--{name}": flat[name] for name in (*models, *names)}
    output_dir = options.output.output_dir

    def check() -> None:
        check_output_folder(output_dir, options.output.resume_from_checkpoint, read)
        if options.output.export_single_file is not None:
            check_export_file(options.output.export_single_file, "--export_single_file")
        if options.hub.push_to_hub:
            check_push(options)

    on_main_process(accelerator, check)
    with lock_folder_of_run(accelerator, output_dir, "--output_dir"):
        yield


class Publisher:
    """Publishes the student at the end of a run, and with `--push_every_checkpoint` that of each checkpoint."""

    def __init__(self, run: Run):
        self.run = run
        self.pusher = None
        if run.options.hub.push_every_checkpoint and run.accelerator.is_main_process:
            self.pusher = CheckpointPusher(run.options)

    def write(self, folder: Path, student: nn.Module) -> None:
        """Write the published layout of `student`, from `whole_student`. Only the main process should call this method.

        Raises:
            PublishError: the layout cannot be written; an older student in `folder` is not changed.
        """
        run = self.run
        facts = {
            "iterations": run.state.step,
            "effective batch": run.effective_batch_size,
            "seed": run.state.seed,
            "prediction type": run.schedules[0].prediction_type,
        }
        if uses_latent_discriminator(run.options):
            taps = " ".join(run.options.discriminator.discriminator_taps)
            facts["discriminator"] = f"latent (LADD), on the teacher's features ({taps})"
        if run.state.changed:
            facts["changed on resume"] = "; ".join(run.state.changed)
        scheduler = make_student_scheduler(run.options, run.family.scheduler)
        write_output(run.options, folder, run.family, student, scheduler, facts)

    def push_checkpoint(self) -> None:
        """Queue the student of a checkpoint for the branch `checkpoints`, with `--push_every_checkpoint`."""
        if self.run.options.hub.push_every_checkpoint:
            with whole_student(self.run) as student:
                if self.pusher is not None:
                    self.pusher.push(lambda folder: self.write(folder, student), self.run.state.step)
        self.run.accelerator.wait_for_everyone()

    def publish(self) -> None:
        """Write the finished student to `--output_dir`; also export and push it if the flags say so.

        Raises:
            PublishError: one of these failed; raised in every process.
        """
        with whole_student(self.run) as student:
            on_main_process(self.run.accelerator, lambda: self._publish(student))

    def _publish(self, student: nn.Module) -> None:
        options, folder = self.run.options, Path(self.run.options.output.output_dir)
        self.write(folder, student)
        logger.info("Saved the student to %s", folder.resolve())
        if options.output.export_single_file is not None:
            export_single_file(folder, options.output.export_single_file)
        if self.pusher is not None:
            self.pusher.close()
        if options.hub.push_to_hub:
            push_published(options)

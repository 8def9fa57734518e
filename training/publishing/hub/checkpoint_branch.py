"""`--push_every_checkpoint`: pushes the student of each checkpoint to the branch `checkpoints` in the background."""

import logging
import re
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from training.errors import UserError
from training.options.options import Options
from training.publishing.folder.layout import PublishError
from training.publishing.hub.attempt import reason
from training.publishing.hub.push import publish, repo_name
from training.publishing.hub.token import redact

logger = logging.getLogger(__name__)
BRANCH = "checkpoints"
_PREFIX = ".push-student-"
_LEFT_OVER = re.compile(re.escape(_PREFIX) + r"[0-9a-f]{8}")


class CheckpointPusher:
    """Pushes students in the background, in order, one commit each, to the branch `checkpoints`.

    Only the published layout is pushed, without optimizer state. A failed push is logged and training continues.
    `close` waits for the last push.
    """

    def __init__(self, options: Options):
        self.options = options
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self.queued: list[Future] = []
        self.failed = 0
        folder = Path(options.output.output_dir)
        for path in folder.iterdir() if folder.is_dir() else ():
            if _LEFT_OVER.fullmatch(path.name):  # from a killed run, which does not hold the lock of --output_dir
                shutil.rmtree(path, ignore_errors=True)

    def push(self, save: Callable[[Path], None], step: int) -> None:
        """Write the published layout, including the card, with `save(folder)`, and queue its upload."""
        folder = Path(self.options.output.output_dir, f"{_PREFIX}{uuid.uuid4().hex[:8]}")
        try:
            folder.mkdir(parents=True)
            save(folder)
        except (OSError, PublishError) as error:  # such as a full disk, which must not end the training
            shutil.rmtree(folder, ignore_errors=True)
            self._report(step, error)
        else:
            self.queued.append(self.worker.submit(self._push, folder, step))

    def _push(self, folder: Path, step: int) -> None:
        try:
            done = publish(
                folder,
                repo_name(self.options),
                token=self.options.hub.hub_token,
                private=self.options.hub.hub_private_repo,
                branch=BRANCH,
                message=f"Student after {step} iterations",
            )
            logger.info("Pushed the student of iteration %d: %s, commit %s", step, done.repo_id, done.commit)
        except UserError as error:
            self._report(step, error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _report(self, step: int, error: Exception) -> None:
        self.failed += 1
        why = redact(reason(error.__cause__) if error.__cause__ else str(error), self.options.hub.hub_token)
        logger.warning("The student of iteration %d was not pushed; training continues. %s", step, why)

    def close(self) -> None:
        """Wait for the queued pushes. Unexpected errors are raised here."""
        self.worker.shutdown(wait=True)
        for future in self.queued:
            future.result()

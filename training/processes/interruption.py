"""Signal handling: a run ends after a checkpoint that all processes save at the same step."""

import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from training.errors import UserError

logger = logging.getLogger(__name__)

# Ctrl-C, and the signals that cluster schedulers send before they end a job.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

# torchrun (also under `accelerate launch`) forwards Ctrl-C, which the terminal has already sent to every process. The
# same signal within this time is such an echo and not a second request.
ECHO_SECONDS = 1.0
UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID"  # environment variable that torchrun sets for the processes it starts
UNDER_ACCELERATE = "ACCELERATE_DYNAMO_MODE"  # one that `accelerate launch` always sets, and people hardly ever do


class Interrupted(UserError):
    """A signal has ended the run after a checkpoint. `status`, the exit status of the process, is 128 + the signal."""

    label = ""

    def __init__(self, signum: int, step: int):
        super().__init__(
            f"{signal.Signals(signum).name}: saved checkpoint-{step}; resume with --resume_from_checkpoint latest"
        )
        self.status = 128 + signum


class Interruption:
    """Context manager that records the first of `SIGNALS` for the training loop; a second one ends the process at once.

    A signal that the process already ignores, for example because of `nohup` or a shell's `&`, stays ignored.

    `accelerate launch` passes no signal on to a single process: it ends at once, and the run would continue without it.
    So the end of the launcher is noted as a SIGTERM. A run that was started without it outlives its parent.

    Attributes:
        received: number of the signal that was received, 0 if none.
        launcher: process id of `accelerate launch`; None for a run that was started without it.
    """

    def __enter__(self) -> "Interruption":
        self.received, self.received_at, self.process = 0, 0.0, os.getpid()
        self.is_under_torchrun = UNDER_TORCHRUN in os.environ
        self.launcher = os.getppid() if UNDER_ACCELERATE in os.environ else None
        main = threading.current_thread() is threading.main_thread()  # handlers can only be set in the main thread
        noted = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN] if main else []
        self.previous = {s: signal.signal(s, self._receive) for s in noted}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, _: FrameType | None) -> None:
        is_echo = signum == self.received and time.monotonic() - self.received_at < ECHO_SECONDS
        if os.getpid() != self.process or (self.received and not is_echo):  # a data worker has inherited this handler
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        elif not self.received:
            self._note(signum)

    def _note(self, signum: int) -> None:
        self.received, self.received_at = signum, time.monotonic()
        # The default action works even if Python code cannot run, for example in a collective that hangs.
        for s in self.previous:
            if s != signum or not self.is_under_torchrun:
                signal.signal(s, signal.SIG_DFL)

    def _notice_launcher(self) -> None:
        """Note a SIGTERM if `accelerate launch` has ended: the process then has another parent."""
        if not self.received and self.launcher is not None and os.getppid() != self.launcher:
            logger.warning("accelerate launch (process %d) has ended; its run ends at a checkpoint, too", self.launcher)
            self._note(signal.SIGTERM)

    def agreed(self, accelerator: Accelerator) -> int:
        """The signal that any process has received, 0 for none. A collective call that all processes must make."""
        self._notice_launcher()
        if accelerator.num_processes == 1:
            return self.received
        received = torch.tensor([self.received], device=accelerator.device)
        gathered: Any = accelerator.gather(received)
        return int(gathered.max())

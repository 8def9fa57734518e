"""A signal that asks a run to end: it saves a checkpoint first, at every process the same."""

import os
import signal
import threading
from types import FrameType

import torch
from accelerate import Accelerator

from training.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers send before they take a machine away


class Interrupted(UserError):
    """The run has ended early, at a checkpoint. `status` is what the process should exit with: 128 + the signal."""

    label = ""

    def __init__(self, signum: int, step: int):
        super().__init__(
            f"{signal.Signals(signum).name}: saved checkpoint-{step}; go on with --resume_from_checkpoint latest"
        )
        self.status = 128 + signum


class Interruption:
    """Within this context SIGTERM and SIGUSR1 are noted instead of obeyed; a second one ends the process at once."""

    def __enter__(self) -> "Interruption":
        self.received, self.process = 0, os.getpid()
        main = threading.current_thread() is threading.main_thread()  # only there may handlers be set
        self.previous = {s: signal.signal(s, self._receive) for s in SIGNALS} if main else {}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, _: FrameType | None) -> None:
        for s in SIGNALS:
            signal.signal(s, signal.SIG_DFL)
        if os.getpid() != self.process:  # a data worker, which has inherited this handler
            os.kill(os.getpid(), signum)
        self.received = signum

    def agreed(self, accelerator: Accelerator) -> int:
        """The signal that any process has received, 0 for none. Several processes wait here for each other."""
        if accelerator.num_processes == 1:
            return self.received
        received = torch.tensor([self.received], device=accelerator.device)
        return int(accelerator.gather(received).max())

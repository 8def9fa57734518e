"""One process at a time writes into a folder: a lock that ends with the process that holds it, however that ends."""

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout

from training.errors import UserError
from training.processes.main_process import on_main_process

LOCK = ".in_use.lock"  # stays behind, empty; only the kernel's lock on it has a meaning


class FolderInUse(UserError):
    """Another process writes into the folder."""


def lock_folder(folder: str | Path, flag: str) -> AbstractContextManager:
    """Hold `folder` against every other process. To be called by one process of a run, the main one.

    The kernel drops the lock when the process ends, by SIGKILL too, and forked workers do not inherit it. A process
    may hold the same folder several times over; it is free when the last of them ends.

    Args:
        folder: made if it is not there.
        flag: that named the folder, such as "--output_dir", for the message.

    Returns:
        A context in which the folder is held, already entered: it is free when the context ends or is thrown away.

    Raises:
        FolderInUse: another process holds it.
        UserError: the folder cannot be made, or not written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # One object for a path in a process, so that a second call of ours is no stranger to the first.
        lock = FileLock(folder.resolve() / LOCK, timeout=0, thread_local=False, is_singleton=True)
        return lock.acquire()
    except Timeout:
        raise FolderInUse(
            f"{flag} got {str(folder)!r}: another process writes into this folder. Wait until it ends, or name "
            "another folder"
        ) from None
    except OSError as error:
        raise UserError(f"{flag} got {str(folder)!r}: the folder cannot be written to: {error}") from error


def lock_folder_of_run(accelerator: Accelerator, folder: str | Path, flag: str) -> ExitStack:
    """`lock_folder` at the main process of a run; to be reached by every process, each of which is refused alike.

    Args:
        accelerator: of the run.
        folder, flag: see `lock_folder`.

    Returns:
        A context in which the folder is held; keep it as long as the run writes there, and `close()` it then.

    Raises:
        UserError: at every process, where the main one cannot have the folder.
    """
    stack = ExitStack()

    def take() -> None:
        stack.enter_context(lock_folder(folder, flag))

    on_main_process(accelerator, take)
    return stack

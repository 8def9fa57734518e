"""Folder locks, so that only one run at a time writes into a folder. A lock is released when its process ends."""

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout

from training.errors import UserError
from training.processes.main_process import on_main_process

LOCK = ".in_use.lock"  # an empty file that is never removed; only the kernel's lock on it matters


class FolderInUse(UserError):
    """Another process is writing into the folder."""


def lock_folder(folder: str | Path, flag: str) -> AbstractContextManager:
    """Lock `folder` for this process. Only the main process of a run should call this function.

    The kernel releases the lock when the process ends, also after SIGKILL, and forked workers do not inherit it. A
    process may lock the same folder several times; the folder is free when the last lock is released.

    Args:
        folder: folder to lock; it is created if necessary.
        flag: flag that names the folder, such as "--output_dir", for the error message.

    Returns:
        A context manager that holds the lock from now on, until it exits or is garbage-collected.

    Raises:
        FolderInUse: another process has locked the folder.
        UserError: the folder cannot be created or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A singleton per path, so that this process can lock the folder a second time.
        lock = FileLock(folder.resolve() / LOCK, timeout=0, thread_local=False, is_singleton=True)
        return lock.acquire()
    except Timeout:
        raise FolderInUse(
            f"{flag} got {str(folder)!r}: another process is writing into this folder. Wait until it ends, or give "
            "another folder"
        ) from None
    except OSError as error:
        raise UserError(f"{flag} got {str(folder)!r}: the folder cannot be written to: {error}") from error


def lock_folder_of_run(accelerator: Accelerator, folder: str | Path, flag: str) -> ExitStack:
    """Call `lock_folder` on the main process of a run. All processes must call this function.

    Args:
        accelerator: accelerator of the run.
        folder, flag: see `lock_folder`.

    Returns:
        A context manager that holds the lock. Keep it while the run writes into the folder, and `close()` it then.

    Raises:
        UserError: the main process cannot lock the folder; raised in every process.
    """
    stack = ExitStack()

    def take() -> None:
        stack.enter_context(lock_folder(folder, flag))

    on_main_process(accelerator, take)
    return stack

"""A lock on a directory, which the kernel releases when its holder dies."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from glo_core.common.errors import UserError

LOCK_FILE = ".lock"


@contextlib.contextmanager
def file_lock(directory: Path, error: type[UserError] = UserError) -> Iterator[None]:
    """Hold the lock of `directory`, which is created if it is missing, for the length of the block.

    The kernel releases the lock when its holder dies.

    Raises:
        UserError: `error`, if another live process holds the lock.
    """
    with _locked(directory, error) as lock:
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield
        lock.truncate(0)


def _locked(directory: Path, error: type[UserError]) -> TextIO:
    """The locked file, which lies in `directory`: its last holder may have deleted the one that was opened first."""
    path = directory / LOCK_FILE
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                    return lock
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "an unknown process"
            lock.close()
            raise error(f"{directory}: in use by {holder}; wait for it to end, or stop it") from None
        lock.close()

"""Old checkpoints are deleted, but never under a reader.

A reader holds a shared lock on the checkpoint's mark for as long as it has the checkpoint open. Who deletes takes the
exclusive lock first. Linux passes these locks to the server of a network file system, so that they hold over machines;
the kernel of a reader that dies gives its lock back.
"""

import contextlib
import fcntl
import os
import shutil
import time
from pathlib import Path

from glo_core.checkpoint.layout import MARK, CheckpointRecord, committed_checkpoints, discard
from glo_core.common.errors import CheckpointError
from glo_core.common.records import read_record

UNLOCKED_SECONDS = 3600.0
"""Age from which a checkpoint may go where the file system has no locks: readers are done with it, it is hoped"""


def prune(run: Path, keep: int) -> None:
    """Delete committed checkpoints but for the last `keep` and the one of the highest training PSNR.

    One that is being read, or cannot be deleted, stays until the next call.
    """
    with contextlib.suppress(OSError):
        checkpoints = committed_checkpoints(run)
        best = max(checkpoints, key=_train_psnr, default=None)
        for checkpoint in checkpoints[:-keep]:
            if checkpoint != best:
                _delete(checkpoint)


def forget_fitted_codes(run: Path) -> None:
    """Delete all codes that `run` fitted to appended images, because a checkpoint has them; what cannot go stays."""
    shutil.rmtree(run / "growth", ignore_errors=True)


def _delete(checkpoint: Path) -> None:
    with contextlib.suppress(OSError):
        # First the mark: without it a half deleted checkpoint counts as uncommitted.
        if _remove_mark(checkpoint / MARK):
            discard(checkpoint)


def lock_for_reading(mark: Path) -> int:
    """Keep the checkpoint of `mark` from being deleted until the file descriptor that is returned is closed.

    Raises:
        FileNotFoundError: if the mark is gone.
    """
    while True:
        descriptor = os.open(mark, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # A file system without locks: see `UNLOCKED_SECONDS`.
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            # The mark may have been removed between opening and locking it.
            if os.path.samestat(os.fstat(descriptor), mark.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _train_psnr(checkpoint: Path) -> float:
    """PSNR in dB; minus infinity where it is unknown, or the mark is damaged or gone."""
    try:
        psnr = read_record(checkpoint / MARK, CheckpointRecord).train_psnr
    except (CheckpointError, OSError):
        return float("-inf")
    return float("-inf") if psnr is None else psnr


def _remove_mark(mark: Path) -> bool:
    """Remove the mark, unless somebody reads the checkpoint; returns whether it is removed."""
    with mark.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            if time.time() - mark.stat().st_mtime < UNLOCKED_SECONDS:
                return False
        mark.unlink()
    return True

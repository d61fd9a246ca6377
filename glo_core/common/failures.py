"""Whose an error is, and how all ranks end together when one of them fails.

- The user's: a full disk, too little memory, a wrong setting. It would come again: training ends with one line.
- The machine's: an I/O error, a connection that broke. Another attempt from the last checkpoint may succeed.
- The node's: a lost process. It leaves no error behind; whoever started the ranks starts them again elsewhere.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator

import torch

from glo_core.common.errors import DISK_FULL, UserError, one_line
from glo_core.common.runtime import Runtime

_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


class RankError(Exception):
    """Another rank met an error of its machine; another attempt from the last checkpoint may succeed."""


class UnseenFileError(Exception):
    """This rank does not see what another one wrote; another attempt from the last checkpoint may succeed."""


def user_error_of(error: BaseException) -> UserError | None:
    """`error` as the user's, in one line; None if it is the machine's."""
    if isinstance(error, UserError):
        return error
    if is_out_of_memory(error):
        remedy = "use a smaller `batch_size`, or keep fewer codes in memory by `window`"
        return UserError(f"out of memory ({one_line(error)[:200]}); {remedy}")
    if isinstance(error, OSError) and error.errno in DISK_FULL | _REFUSED:
        place = error.filename or "a file"
        remedy = "free some space" if error.errno in DISK_FULL else "give the user of this process access"
        return UserError(f"{place}: {os.strerror(error.errno or 0).lower()}; {remedy} and run the same command again")
    return None


@contextlib.contextmanager
def in_users_words() -> Iterator[None]:
    """Raise errors in the block that are the user's as one line: a `UserError`."""
    try:
        yield
    except Exception as error:
        user_error = user_error_of(error)
        if user_error is None or user_error is error:
            raise
        raise user_error from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the device or of the host was too little."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # PyTorch has no class for these.
    words = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def raise_together(runtime: Runtime, error: BaseException | None) -> None:
    """Raise on every rank if any rank has an error; every rank calls this with its own, or None.

    Raises:
        UserError: on every rank, if the error of any rank is the user's.
        RankError: on the other ranks, if an error is the machine's; its own rank raises it as it is.
    """
    own = user_error_of(error) if error is not None else None
    line = one_line(error) if error is not None else ""
    # By rank: the user's error; else one line about the machine's, "" if there is none; and the host.
    outcomes = runtime.all_gather((own, line, socket.gethostname()))
    if own is not None:
        raise own from (None if own is error else error)
    for user_error, _, _ in outcomes:
        if user_error is not None:
            raise user_error
    if error is not None:
        raise error
    for rank, (_, rank_line, host) in enumerate(outcomes):
        if rank_line:
            raise RankError(f"rank {rank} on {host} failed: {rank_line}")

"""An attempt: one group of ranks that trains a run, from its start to its end or its loss.

rank 0 writes a new token into `attempt.json` -> every rank reads it back -> older attempts can commit nothing

A group that was given up may still be alive, stopped or cut off. Its parts lie in directories that have its token in
their name. The next attempt moves these away after it has written its own token, so that a commit of the older one,
which is the rename of such a directory, finds nothing to rename.
"""

import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from glo_core.checkpoint.layout import sweep_uncommitted
from glo_core.common.errors import CheckpointError, UserError
from glo_core.common.failures import UnseenFileError, raise_together
from glo_core.common.records import Record, read_record, write_record
from glo_core.common.runtime import Runtime

ATTEMPT_FILE = "attempt.json"
PATIENCE_SECONDS = 10.0
"""How long a rank looks for a file that another node has written: network file systems may show it late"""


class FencedError(CheckpointError):
    """A newer attempt trains the run: this one can neither commit nor delete anything."""


@dataclass(frozen=True, kw_only=True)
class AttemptRecord(Record):
    """`attempt.json`: who trains a run now, or did last."""

    format: ClassVar[str] = "glo-attempt"
    error: ClassVar[type[UserError]] = CheckpointError
    anew: ClassVar[str] = "delete it"

    token: str
    """Random, 32 hex digits"""
    host: str
    """Of rank 0"""
    process: int
    """Of rank 0"""


@dataclass(frozen=True)
class Attempt:
    """The attempt that this rank belongs to."""

    run: Path
    token: str

    @classmethod
    def begin(cls, run: Path, runtime: Runtime) -> "Attempt":
        """Begin an attempt on `run`, and end the right of all earlier ones to commit; every rank calls this.

        Uncommitted checkpoints, which earlier attempts left, are deleted.

        Raises:
            UserError: on every rank, if a rank does not see at `run` what rank 0 wrote there, or `run` takes no file.
        """
        record = AttemptRecord(token=secrets.token_hex(16), host=socket.gethostname(), process=os.getpid())
        error: Exception | None = None
        if runtime.rank == 0:
            try:
                write_record(run / ATTEMPT_FILE, record)
                sweep_uncommitted(run, record.token)
            except (OSError, UserError) as caught:
                error = caught
        raise_together(runtime, error)
        record = runtime.all_gather(record)[0]
        raise_together(runtime, _not_shared(run, record, runtime.rank))
        return cls(run, record.token)

    def require_current(self) -> None:
        """Raise `FencedError` if a newer attempt has begun, or the run is gone."""
        token = _token_in(self.run)
        if token != self.token:
            raise FencedError(
                f"{self.run}: a newer attempt trains this run; this one, process {os.getpid()} on "
                f"{socket.gethostname()}, ends and commits nothing"
            )


def seen_by_all(runtime: Runtime, path: Path) -> bool:
    """Whether `path` is there, as rank 0 sees it; if it is, every rank sees it. Every rank calls this.

    Raises:
        UnseenFileError: if this rank does not come to see it; a `RankError` on the other ranks.
    """
    if not runtime.all_gather(runtime.rank == 0 and path.exists())[0]:
        return False
    require_seen(runtime, path)
    return True


def require_seen(runtime: Runtime, path: Path) -> None:
    """Wait until every rank sees `path`, which rank 0 sees: network file systems may show it late.

    Raises:
        UnseenFileError: if this rank does not come to see it; a `RankError` on the other ranks.
    """
    error: Exception | None = None
    if not _comes_true(path.exists):
        error = UnseenFileError(
            f"{path}: rank 0 sees it, and rank {runtime.rank} on {socket.gethostname()} does not, after "
            f"{PATIENCE_SECONDS:g} s"
        )
    raise_together(runtime, error)


def _comes_true(condition: Callable[[], bool]) -> bool:
    """Whether `condition` holds, now or within `PATIENCE_SECONDS`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)
    return True


def _token_in(run: Path) -> str:
    """The token that `run` holds; "" if it holds none."""
    try:
        return read_record(run / ATTEMPT_FILE, AttemptRecord).token
    except (CheckpointError, OSError):
        return ""


def _not_shared(run: Path, record: AttemptRecord, rank: int) -> CheckpointError | None:
    """What is wrong if this rank does not see the file of rank 0."""
    if _comes_true(lambda: _token_in(run) == record.token):
        return None
    return CheckpointError(
        f"{run.absolute()} on {socket.gethostname()} (rank {rank}) is not the directory that rank 0 on "
        f"{record.host} writes to; `run` must lie on a disk that every node shares, under the same path"
    )

"""A Ray on this machine, started by a job and ended with it."""

import contextlib
import logging
import os
import shlex
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

_LONGEST = 38
"""Bytes of a directory below which the paths of Ray's sockets have at most the 107 bytes that Linux allows"""
_starting = threading.Event()
_address: str | None = None
"""Of the Ray that this process has started"""


def _own_session() -> None:
    if _starting.is_set():
        os.setsid()


os.register_at_fork(after_in_child=_own_session)  # Ray gives its processes a `preexec_fn`, so that this is called.


def is_local_ray() -> bool:
    """Whether the Ray that this process is connected to is one that it has started here."""
    import ray

    return ray.get_runtime_context().gcs_address == _address


def start_local_ray() -> None:
    """Start Ray on this machine and connect to it, with its processes outside the job's process group.

    A signal to the group (Ctrl-C, `timeout`, a batch system) is a wish that the job stops with a checkpoint. Ray's
    processes must outlive it, for as long as the job does: each ends when the process that started it has ended.
    """
    import ray

    directory = str(_private_directory() / "ray")
    with _sessions_of_their_own():
        # Errors alone: without a dashboard, Ray Train warns every second. What workers print is in Ray's session
        # directory.
        ray.init(
            address="local",
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=directory,
            runtime_env=_quoted_interpreter(),
        )
    global _address
    _address = ray.get_runtime_context().gcs_address


def _quoted_interpreter() -> dict[str, str]:
    """A runtime environment that names the interpreter as a shell reads it, where its path has a space or the like.

    Ray hands a worker's command to a shell with the interpreter's path as it is: such a worker would never start.
    """
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def _private_directory() -> Path:
    """A directory that other users of this machine cannot enter: Ray lets everybody into its own, sockets and logs."""
    temporary = tempfile.gettempdir()
    path = Path(temporary if len(os.fsencode(temporary)) + 20 <= _LONGEST else "/tmp") / f"glo-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077:
        return path
    return Path(tempfile.mkdtemp(prefix="glo-", dir=path.parent))  # Somebody else made it.


@contextlib.contextmanager
def _sessions_of_their_own() -> Iterator[None]:
    """Let every process that Ray starts in the block lead a session of its own."""
    _starting.set()
    try:
        yield
    finally:
        _starting.clear()

"""A Ray on this machine, started by a job and ended with it."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator

_starting = threading.Event()


def _own_session() -> None:
    if _starting.is_set():
        os.setsid()


os.register_at_fork(after_in_child=_own_session)  # Ray gives its processes a `preexec_fn`, so that this is called.


def start_local_ray() -> None:
    """Start Ray on this machine and connect to it, with its processes outside the job's process group.

    A signal to the group (Ctrl-C, `timeout`, a batch system) is a wish that the job stops with a checkpoint. Ray's
    processes must outlive it, for as long as the job does: each ends when the process that started it has ended.
    """
    import ray

    with _sessions_of_their_own():
        # Errors alone: without a dashboard, Ray Train warns every second. What workers print is in Ray's session
        # directory.
        ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)


@contextlib.contextmanager
def _sessions_of_their_own() -> Iterator[None]:
    """Let every process that Ray starts in the block lead a session of its own."""
    _starting.set()
    try:
        yield
    finally:
        _starting.clear()

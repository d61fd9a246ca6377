"""The connection to Ray: a cluster if RAY_ADDRESS names one, else this machine for as long as the job runs.

Ray is imported when it is connected to: a user's mistake is told before that.
"""

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from glo_core.common.credentials import redact
from glo_core.common.errors import UserError
from pipelines.common.local_ray import is_local_ray, start_local_ray

_shared: list[contextlib.ExitStack] = []
"""What closes a connection that outlives its stage, within `shared_ray_session`"""


@contextlib.contextmanager
def shared_ray_session() -> Iterator[None]:
    """Let the stages in the block share one connection, made when the first of them needs it."""
    with contextlib.ExitStack() as closing:
        _shared.append(closing)
        try:
            yield
        finally:
            _shared.remove(closing)


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Connect to Ray for the length of the block; an open connection is used, and stays open after it.

    Raises:
        UserError: if RAY_ADDRESS names a cluster that does not answer, or Ray does not start here.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    with contextlib.ExitStack() as closing:
        _connect()
        (_shared[-1] if _shared else closing).callback(ray.shutdown)
        yield


def uses_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster, or this process is connected to one that is not its own."""
    if os.environ.get("RAY_ADDRESS"):
        return True
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and not is_local_ray()


def _connect() -> None:
    import ray

    address = os.environ.get("RAY_ADDRESS")
    _hide_secrets_of_command_line()
    try:
        with _keep_sigterm_handler():
            if address:
                _require_answer(address)
                ray.init(logging_level=logging.WARNING)
            else:
                start_local_ray()
    except Exception as error:  # Of a start that takes too long, Ray raises no class of its own.
        line = (str(error).splitlines() or [type(error).__name__])[0]
        if address:
            raise UserError(
                f"RAY_ADDRESS={address}: cannot connect to a Ray cluster there ({line}); start one, or unset "
                "RAY_ADDRESS to run on this machine"
            ) from None
        raise UserError(
            f"Ray does not start on this machine: {line}; if the machine is busy, try again later"
        ) from None


@contextlib.contextmanager
def _keep_sigterm_handler() -> Iterator[None]:
    """Restore the job's handler of SIGTERM after the block: Ray puts one in its place that only ends the process."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler != signal.SIG_DFL and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _hide_secrets_of_command_line() -> None:
    """Retitle this process if its command line holds a password: Ray stores it as the job's, and `ps` shows it."""
    import ray

    command = " ".join(sys.orig_argv)
    if redact(command) != command:
        ray._raylet.setproctitle(redact(command))  # type: ignore[attr-defined]


def _require_answer(address: str) -> None:
    """Connect to `address` once: Ray would try for minutes where nothing listens.

    Raises:
        OSError: if the host and port that `address` names do not answer.
    """
    host_and_port = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)
    if host_and_port:
        socket.create_connection((host_and_port[1], int(host_and_port[2])), timeout=10).close()


def num_cpus() -> float:
    """Logical CPUs of the cluster."""
    import ray

    return float(ray.cluster_resources().get("CPU", 1))


def task_results(tasks: Sequence[Any]) -> Iterator[Any]:
    """The results of Ray tasks, in the order of `tasks`; a user's error in a task is raised as it is.

    Raises:
        UserError: that a task raised.
    """
    import ray

    for task in tasks:
        try:
            yield ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None

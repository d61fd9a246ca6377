"""The connection to Ray: a running cluster where RAY_ADDRESS names one, else this machine for the job's length."""

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator

import ray

from glo_core.common.errors import UserError


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Connect to Ray; a session that is already there is used and left alone.

    Raises:
        UserError: if RAY_ADDRESS names a cluster that does not answer, or Ray does not start here.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _reach(address)
            ray.init(logging_level=logging.WARNING)
        else:
            # Without a dashboard, Ray Train's housekeeping would complain every second on the job's own output; what
            # workers print is in Ray's session directory.
            ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # A start that takes too long is no more than that to Ray.
        line = (str(error).splitlines() or [type(error).__name__])[0]
        if address:
            raise UserError(
                f"RAY_ADDRESS={address}: cannot connect to a Ray cluster there ({line}); start one, or unset "
                "RAY_ADDRESS to run on this machine"
            ) from None
        raise UserError(
            f"Ray does not start on this machine: {line}; if it is busy with other work, try again later"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Ray would try for minutes where nothing listens.

    Raises:
        OSError: if the host and port that `address` names do not answer.
    """
    named = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)
    if named:
        socket.create_connection((named[1], int(named[2])), timeout=10).close()


def num_cpus() -> float:
    """Logical CPUs of the cluster."""
    return float(ray.cluster_resources().get("CPU", 1))

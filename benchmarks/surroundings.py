"""What surrounds a training on this machine: a port, an MLflow server, a small disk."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(place: Path, port: int) -> Iterator[None]:
    """A real MLflow server, killed at the end."""
    command = ["server", "--backend-store-uri", f"sqlite:///{place}/mlflow.db", "--artifacts-destination",
               str(place / "artifacts"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]  # fmt: skip
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (place / "log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "mlflow", *command], stdout=log, stderr=log, env=environment)
    for _ in range(120):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            break
        time.sleep(0.5)
    try:
        yield
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[bool]:
    """A file system of `size` bytes at `place`; False, and none, where it may not be mounted."""
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True)
    try:
        yield not mounted.returncode
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "-l", place], check=True)

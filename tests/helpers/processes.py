"""Processes that a test starts, and ends."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"})
    for _ in range(240):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(request, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"{url} does not answer: {log.read_text()[-3000:]}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that a fixture started, with its children."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
    for child in children:
        if child.is_running():
            child.kill()


class Head:
    """A running Ray head."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, dashboard: str) -> None:
        self.process, self.address, self.dashboard = process, address, dashboard

    def processes(self, title: str) -> list[psutil.Process]:
        """Its processes whose title contains `title`."""
        matches = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if title in " ".join(process.cmdline()):
                    matches.append(process)
            except psutil.NoSuchProcess:
                continue
        return matches


class MlflowServer:
    """A server with its database and its artifacts in the directory `place`, which can be ended and started again."""

    def __init__(self, place: Path) -> None:
        self.place, self.port = place, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = ["server", "--backend-store-uri", f"sqlite:///{self.place}/mlflow.db", "--artifacts-destination",
                   str(self.place / "artifacts"), "--host", "127.0.0.1", "--port", str(self.port),
                   "--workers", "1"]  # fmt: skip
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.place / "log").open("ab") as log:
            words = [sys.executable, "-m", "mlflow", *command]
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
        try:
            wait_for(f"{self.uri}/health", self.process, self.place / "log")
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        end(self.process)


def await_start(node: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a node of `ray start --block` says in `log` that it runs; one that starts before its head gives up."""
    for _ in range(240):
        if b"Ray runtime started" in log.read_bytes():
            return
        assert node.poll() is None, log.read_text()[-3000:]
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])

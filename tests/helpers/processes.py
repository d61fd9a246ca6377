"""Processes that a test starts, and ends."""

import os
import socket
import subprocess
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

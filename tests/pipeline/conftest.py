"""A real Ray head, a real MLflow server and real folders of images for the jobs."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
Job = Callable[..., subprocess.CompletedProcess[str]]

# Before anything imports Ray: one secret for the head and for everything that talks to it.
os.environ |= {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "PYTHONPATH": str(ROOT),
}
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)


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
        """Its processes whose title holds `title`."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if title in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    # Ray's Unix sockets allow 107 bytes: a short directory of its own.
    scratch = Path(tempfile.mkdtemp(prefix="glo", dir="/tmp"))
    port, dashboard, agent = free_port(), free_port(), free_port()
    command = ["start", "--head", "--block", "--num-cpus=2", f"--port={port}", f"--dashboard-port={dashboard}",
               "--dashboard-host=127.0.0.1", "--include-dashboard=true", f"--temp-dir={scratch}",
               "--node-ip-address=127.0.0.1",
               f"--dashboard-agent-listen-port={agent}"]  # fmt: skip  # Another Ray here has the usual one.
    with (scratch / "head.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "ray.scripts.scripts", *command], stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{dashboard}/api/version", process, scratch / "head.log")
        yield Head(process, f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}")
    finally:
        end(process)
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture
def job(head: Head) -> Job:
    """Run `python jobs/<name>.py ...` on the head, to its end."""

    def run(name: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *map(str, arguments)]
        environment = os.environ | {"RAY_ADDRESS": head.address}
        return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, **options)

    return run


@pytest.fixture(scope="session")
def session(head: Head) -> Iterator[None]:
    """This process as a driver on the head: jobs that it calls as functions share warm workers."""
    import ray

    ray.init(address=head.address, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = ["server", "--backend-store-uri", f"sqlite:///{place}/mlflow.db", "--artifacts-destination",
               str(place / "artifacts"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]  # fmt: skip
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (place / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "mlflow", *command], stdout=log, stderr=log, env=environment)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, place / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)


def write_images(folder: Path, count: int, *, seed: int, side: int = 20) -> None:
    """`count` PNG files of random bright spots, in two class folders."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    for number in range(count):
        centre = generator.uniform(4, side - 4, 2)
        spot = 255 * np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 10)
        path = folder / "ab"[number % 2] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(spot.round().astype(np.uint8)).save(path)

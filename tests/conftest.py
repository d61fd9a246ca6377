"""Fixtures shared by all tests: a real Ray head, a real MLflow server, images."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.helpers.typecheck  # noqa: F401, the hook finds it by its name

# Before anything imports the core: each call of its functions is checked against their signatures, shapes included.
install_import_hook("glo_core", "tests.helpers.typecheck.typechecked")

from tests.helpers.paths import ROOT  # noqa: E402
from tests.helpers.processes import Head, MlflowServer, end, free_port, wait_for  # noqa: E402

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
    # Of the S3 server of tests, for Ray's workers too: a URI may hold no key.
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
}
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)

# No property depends on time: a busy machine may take longer than Hypothesis allows by default.
settings.register_profile("glo", deadline=None)
settings.load_profile("glo")

# The tensors of tests are small: threads of theirs would wait for each other longer than they work.
torch.set_num_threads(1)


@pytest.fixture
def blobs() -> torch.Tensor:
    """150 images of a bright spot at a random place, uint8 [150, 16, 16, 1]: low-dimensional, not linear."""
    generator = np.random.default_rng(0)
    centres = generator.uniform(4, 12, (150, 2))
    y, x = np.mgrid[:16, :16]
    distance = (y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2
    return torch.from_numpy((255 * np.exp(-distance / 8)).round().astype(np.uint8))[..., None]


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

    def run(name: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
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
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield server.uri
    server.end()

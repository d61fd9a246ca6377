"""A signal to the process group of a training, without Ray or with one of its own: a checkpoint, and nothing stays."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest

from glo_core import Checkpoint
from pipelines.common.records import read_run_record
from tests.helpers.paths import ROOT
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.write_images import write_images

FLAGS = ["--images", "1e9", "--batch-size", "32", "--code.dim", "4", "--decoder.filters", "16", "8",
         "--intervals.report", "100", "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("stop")
    write_images(place / "images", 60, seed=3)
    preprocess_small(place / "dataset", place / "images")
    return place / "dataset"


class Training:
    """`python jobs/train.py` in a process group of its own, once it trains; two workers need a Ray, which it starts."""

    def __init__(self, dataset: Path, run: Path, *before: str, workers: int = 1) -> None:
        self.run, self.log = run, run.parent / "log"
        self.tracking = f"sqlite:///{run.parent}/mlflow.db"
        command = [*before, sys.executable, str(ROOT / "jobs/train.py"), "--dataset", str(dataset), "--run", str(run),
                   "--tracking-uri", self.tracking, "--workers", str(workers)]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*command, *FLAGS], stdout=log, stderr=log, start_new_session=True)
        progress = run / "progress.jsonl"
        while not progress.exists() or '"train_psnr"' not in progress.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        for child in self.children:
            if child.is_running():
                child.kill()
        self.process.kill()
        self.process.wait()

    def remaining(self, seconds: float) -> list[str]:
        """What is left of its processes after `seconds` at most."""
        _, alive = psutil.wait_procs(self.children, timeout=seconds)
        return [process.name() for process in alive]


@pytest.fixture
def trainings() -> Iterator[list[Training]]:
    begun: list[Training] = []
    yield begun
    for training in begun:
        training.end()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("before", "number", "workers"),
    [
        pytest.param(("timeout", "500"), signal.SIGTERM, 1, id="timeout"),  # Passes a signal on as it does at its end.
        pytest.param(("timeout", "500"), signal.SIGTERM, 2, id="timeout with Ray", marks=SLOW),
        pytest.param((), signal.SIGTERM, 2, id="SIGTERM", marks=SLOW),
        pytest.param((), signal.SIGINT, 1, id="SIGINT", marks=SLOW),
        pytest.param((), signal.SIGINT, 2, id="SIGINT with Ray", marks=SLOW),
        pytest.param((), signal.SIGHUP, 2, id="SIGHUP", marks=SLOW),
    ],
)
def test_a_signal_to_the_group_stops_with_a_checkpoint(
    dataset: Path,
    tmp_path: Path,
    trainings: list[Training],
    before: tuple[str, ...],
    number: signal.Signals,
    workers: int,
) -> None:
    training = Training(dataset, tmp_path / "run", *before, workers=workers)
    trainings.append(training)
    if before:
        training.process.send_signal(number)
    else:
        os.killpg(training.process.pid, number)
    status = training.process.wait(120)
    log = training.log.read_text()
    assert status == 130, log
    seen = Checkpoint.latest(training.run).position.images_seen
    assert f"stopped at {seen} of 1000000000 images with a checkpoint; the same command resumes" in log
    assert "GCS" not in log
    record = read_run_record(training.run)
    assert record is not None
    assert record.mlflow_run_id is not None
    client = mlflow.MlflowClient(training.tracking)
    assert client.get_run(record.mlflow_run_id).info.status == "KILLED"
    assert training.remaining(30) == []


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_of_ray_behind(dataset: Path, tmp_path: Path, trainings: list[Training]) -> None:
    training = Training(dataset, tmp_path / "run", workers=2)
    trainings.append(training)
    training.process.kill()
    assert training.remaining(120) == []  # Two agents of Ray look once every ten seconds whether they are needed.

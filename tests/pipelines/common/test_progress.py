"""A stage and an MLflow that fails for a moment, or does not answer."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from glo_core import UserError
from pipelines.common import tracking
from pipelines.common.progress import Progress
from pipelines.common.tracking import Tracker
from pipelines.common.tracking_config import TrackingConfig


class SilentServer:
    """Accepts connections, and does not answer."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.uri = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.connections.append(self.socket.accept()[0])
            except OSError:  # Closed.
                return


@pytest.fixture
def silent() -> Iterator[SilentServer]:
    server = SilentServer()
    yield server
    server.socket.close()


def test_a_server_that_does_not_answer_holds_the_work_up_for_seconds(
    tmp_path: Path, silent: SilentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    config = TrackingConfig(tracking_uri=silent.uri)
    monkeypatch.setattr(tracking, "_reached", {silent.uri})
    progress = Progress(config, tmp_path, "render", tmp_path / "grids")
    begin = time.monotonic()
    progress.connect()
    end = time.monotonic()
    assert len(silent.connections) == 2
    progress.metrics({"images": 1.0})
    assert len(silent.connections) == 2, "within the pause it is not asked again"
    assert progress._try_again > begin + 20 * (end - begin)


def test_a_request_has_ten_seconds_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="does not answer there"):
        Tracker.start(TrackingConfig(tracking_uri="http://127.0.0.1:9"), tmp_path, name="render")
    assert (os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"], os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) == ("1", "10")


def test_an_interrupted_stage_goes_on_without_a_server_that_its_first_command_did_not_have_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first command of a pipeline's training knew the address from preprocessing, and was killed."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = TrackingConfig(tracking_uri="http://127.0.0.1:9")
    with pytest.raises(UserError, match="does not answer there"):
        Progress(config, tmp_path, "train", tmp_path / "run").connect()
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_reached", {config.tracking_uri})
        first = Progress(config, tmp_path, "train", tmp_path / "run")
        first.connect()
        first.metrics({"loss": 1.0}, 100)
    again = Progress(config, tmp_path, "train", tmp_path / "run")
    again.connect()
    assert again.run_id is None


def test_an_error_that_passes_begins_no_second_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, directory = TrackingConfig(), tmp_path / "run"
    first = Progress(config, tmp_path, "train", directory)
    first.connect()
    first.metrics({"loss": 1.0}, 1)
    mlflow.end_run("RUNNING")  # As its process ends.
    get_run, failed = mlflow.MlflowClient.get_run, threading.Event()

    def fail_once(client: Any, run_id: str) -> Any:
        if not failed.is_set():
            failed.set()
            raise MlflowException("server closed the connection")
        return get_run(client, run_id)

    monkeypatch.setattr(mlflow.MlflowClient, "get_run", fail_once)
    again = Progress(config, tmp_path, "train", directory)
    again.connect()
    assert again.finish("FINISHED")
    assert again.run_id == first.run_id is not None
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run(first.run_id).info.status == "FINISHED"
    # One that is deleted, or never was, is another matter.
    client.delete_run(first.run_id)
    reopened = Tracker.reopen(config, tmp_path, name="train", run_id=first.run_id)
    assert reopened.run_id not in (first.run_id, Tracker.reopen(config, tmp_path, name="train", run_id="5" * 32).run_id)

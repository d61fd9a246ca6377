"""MLflow stores in a state that the user has to mend: MLflow's own words are shown, whole and in one line."""

import sqlite3
import subprocess
from pathlib import Path

import mlflow
import pytest

from glo_core.common.errors import UserError
from pipelines.common.tracking import Tracker
from pipelines.common.tracking_config import TrackingConfig


def refused(root: Path, uri: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        Tracker.start(TrackingConfig(tracking_uri=uri), root, name="train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """URI of a database with the experiment."""
    tracker = Tracker.start(TrackingConfig(), tmp_path, name="train")
    tracker.finish()
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_a_run_of_another_store_is_named(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123456789abcdef0123456789abcdef")
    line = refused(tmp_path)
    assert line == (
        f"MLFLOW_RUN_ID=0123456789abcdef0123456789abcdef: {store} has no such run; unset MLFLOW_RUN_ID, or set "
        "MLFLOW_TRACKING_URI to the store that has it"
    )


def test_a_deleted_experiment(store: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("glo")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    line = refused(tmp_path)
    assert line == (
        "`experiment` (=glo): is deleted; you can restore the experiment (mlflow experiments restore --experiment-id "
        f"{experiment.experiment_id}), or permanently delete the experiment to create a new one, or name another one"
    )


def test_an_older_database(store: str, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    old = tmp_path / "old.db"
    (tmp_path / "mlflow.db").rename(old)  # MLflow remembers a database that it has opened.
    line = refused(tmp_path, f"sqlite:///{old}")
    assert "out-of-date database schema" in line
    assert "mlflow db upgrade" in line
    assert "start the server" not in line


def test_a_server_that_is_away_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    line = refused(tmp_path, "http://127.0.0.1:9")
    assert "MLflow does not answer there" in line
    assert "start the server" in line


def test_a_database_on_a_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a small file system to fill needs root")
    try:
        assert "database or disk is full" in refused(tmp_path, f"sqlite:///{small}/mlflow.db")
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)  # SQLAlchemy keeps the database open.

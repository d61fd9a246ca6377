"""MLflow goes away in the middle of a stage, or its artifacts cannot be written: the work stays, and is sent later."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

import pipelines.evaluate
import pipelines.fit_prior
import pipelines.preprocess.job
import pipelines.render
from glo_core import UserError
from pipelines.common.progress_log import is_behind
from pipelines.common.records import read_run_record
from pipelines.config import EvaluateJob, FitPriorJob, RenderJob
from pipelines.evaluate import evaluate
from pipelines.fit_prior import fit_prior
from pipelines.render import render
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.processes import MlflowServer
from tests.helpers.trained_run import make_trained_run
from tests.helpers.write_images import write_images

pytestmark = pytest.mark.usefixtures("session")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "mlflow").mkdir()
    server = MlflowServer(tmp_path / "mlflow")
    yield server
    server.end()


def end_during(monkeypatch: pytest.MonkeyPatch, server: MlflowServer, module: Any, name: str) -> None:
    """End the server's process when the stage calls `name` of its module."""
    original: Callable[..., Any] = getattr(module, name)

    def call(*arguments: Any, **options: Any) -> Any:
        server.end()
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, call)


def runs(uri: str) -> dict[str, Any]:
    """The MLflow runs by name."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("glo")
    every = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in every}) == len(every), "a stage has more than one run"
    return {run.info.run_name: run for run in every}


def pictures(uri: str, run: Any) -> set[str]:
    return {Path(file.path).name for file in mlflow.MlflowClient(uri).list_artifacts(run.info.run_id, "grids")}


def test_stages_finish_without_the_server_and_a_later_command_sends_what_it_missed(
    tmp_path: Path, server: MlflowServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_trained_run(tmp_path)
    tracked: dict[str, Any] = {"run": run, "tracking_uri": server.uri}
    end_during(monkeypatch, server, pipelines.fit_prior, "task_results")
    prior = fit_prior(FitPriorJob(**tracked))
    assert (prior / "done.json").exists()
    assert caplog.text.count("the work goes on, and the next command sends what MLflow misses") == 1
    # The later stages begin without it: it has answered this process before, so its address is no mistake.
    grids = render(RenderJob(**tracked, rows=2, columns=2))
    done = evaluate(EvaluateJob(**tracked, steps=3))
    assert (grids / "done.json").exists()
    directories = [prior, grids, run / "evaluation" / prior.name]
    assert all(is_behind(directory) for directory in directories)
    server.start()
    fit_prior(FitPriorJob(**tracked))
    assert not any(is_behind(directory) for directory in directories)
    logged = runs(server.uri)
    assert set(logged) == {"fit_prior", "render", "evaluate"}
    assert {run.info.status for run in logged.values()} == {"FINISHED"}
    assert logged["fit_prior"].data.metrics["codes"] > 0
    assert logged["evaluate"].data.metrics["train_glo_psnr"] == pytest.approx(done.train.glo.psnr)
    assert logged["evaluate"].data.params["steps"] == "3"
    assert "held_out.png" in pictures(server.uri, logged["evaluate"])
    assert {"reconstructions.png", "samples-full.png"} <= pictures(server.uri, logged["render"])
    for directory in directories:
        record = read_run_record(directory)
        assert record is not None and record.mlflow_run_id == logged[record.stage].info.run_id
    # Nothing is sent twice, and nothing is done again.
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert evaluate(EvaluateJob(**tracked, steps=3)) == done
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/none/mlflow.db"])
def test_a_wrong_address_is_told_before_the_work(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = make_trained_run(tmp_path)
    with pytest.raises(UserError) as caught:
        fit_prior(FitPriorJob(run=run, tracking_uri=uri))
    assert "\n" not in str(caught.value)
    assert not list(run.rglob("prior.json"))
    assert (fit_prior(FitPriorJob(run=run)) / "done.json").exists()


def test_artifacts_that_cannot_be_written_block_no_stage_and_are_sent_once_they_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, uri = make_trained_run(tmp_path), f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "mlartifacts").rename(tmp_path / "of preprocessing")
    (tmp_path / "mlartifacts").write_text("a file where the artifacts' directory should be")
    fit_prior(FitPriorJob(run=run))
    grids = render(RenderJob(run=run, rows=2, columns=2))
    done = evaluate(EvaluateJob(run=run, steps=3))
    assert "MLflow does not take " in caplog.text
    logged = runs(uri)
    assert logged["evaluate"].data.metrics["train_glo_psnr"] == pytest.approx(done.train.glo.psnr)
    assert logged["render"].info.status == logged["evaluate"].info.status == "FINISHED"
    (tmp_path / "mlartifacts").unlink()
    fit_prior(FitPriorJob(run=run))  # Any later command of the run.
    assert not is_behind(grids)
    assert "reconstructions.png" in pictures(uri, logged["render"])
    assert "held_out.png" in pictures(uri, logged["evaluate"])


@pytest.mark.slow
def test_preprocessing_commits_without_the_server_and_the_next_run_sends_what_it_missed(
    tmp_path: Path, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "images", 20, seed=1)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    dataset, images, uri = tmp_path / "dataset", tmp_path / "images", server.uri
    with monkeypatch.context() as patch:
        end_during(patch, server, pipelines.preprocess.job, "commit")
        report = preprocess_small(dataset, images, tracking_uri=uri)
    assert (report["train"], report["rejected"]) == (20, 1)
    assert is_behind(dataset / "tracking" / "000001")
    server.start()
    assert preprocess_small(dataset, images, tracking_uri=uri) == {}
    assert not (dataset / "tracking").exists()
    logged = runs(uri)
    assert logged["preprocess"].info.status == "FINISHED"
    assert logged["preprocess"].data.metrics["train"] == 20
    assert pictures(uri, logged["preprocess"]) == {"new_images.png"}
    artifacts = mlflow.MlflowClient(uri).list_artifacts(logged["preprocess"].info.run_id)
    assert {"rejected.txt", "000001.json"} <= {file.path for file in artifacts}

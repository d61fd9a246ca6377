"""The whole pipeline, submitted to a real head and tracked by a real MLflow server."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import glo_core
import jobs.evaluate
import jobs.pipeline
import jobs.train
from glo_core import UserError
from glo_core.common.file_lock import file_lock
from glo_core.common.location import Location
from glo_core.common.records import read_record
from glo_core.data.dataset import Dataset
from glo_core.evaluation.pca_baseline import PcaBaseline
from jobs.cli import parse
from pipelines.common.records import PipelineMetrics
from pipelines.config import EvaluateJob, PipelineJob
from pipelines.evaluate import evaluate
from pipelines.pipeline import run_pipeline
from pipelines.train.config import TrainJob
from pipelines.train.job import run_training
from tests.helpers.paths import ROOT
from tests.helpers.processes import Head
from tests.helpers.write_images import write_images

TRAINED = 88
"""Of the 100 images; the others are held out, by their hash"""

RECIPE = """
preprocess: {resolution: 16, channels: 3, holdout: 0.1}
train:
  images: 1936
  workers: 2
  batch_size: 32
  code: {dim: 4}
  decoder: {filters: [16, 8]}
  intervals: {report: 200}
render: {columns: 4, rows: 3, neighbors: 2}
evaluate: {steps: 20}
"""


class Submitted(NamedTuple):
    root: Path
    log: str


def submit(head: Head, *command: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    runtime = json.dumps({"env_vars": env or {}, "excludes": [".venv", ".git", "demo-run"]})
    line = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", f"--address={head.dashboard}",
            "--working-dir", str(ROOT), f"--runtime-env-json={runtime}", "--", *map(str, command)]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(line, capture_output=True, text=True, timeout=290, env=environment)


@pytest.fixture(scope="module")
def submitted(head: Head, mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    place = tmp_path_factory.mktemp("submitted")
    write_images(place / "images", 100, seed=5)
    (place / "recipe.yaml").write_text(RECIPE)
    flags = ["--input", place / "images", "--root", place / "out", "--recipe", place / "recipe.yaml"]
    tracked = {"MLFLOW_TRACKING_URI": mlflow_server}
    done = submit(head, sys.executable, "jobs/pipeline.py", *flags, env=tracked)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return Submitted(place / "out", done.stdout)


def test_a_submitted_pipeline_succeeds_and_its_log_shows_progress(submitted: Submitted) -> None:
    root, log = submitted
    stages = (
        "preprocess: found 100 files",
        f"train: {TRAINED} images of 16 px",
        "train: done",
        "fit_prior: ",
        "render: ",
        "evaluate: ",
    )
    for line in stages:
        assert line in log
    assert "succeeded" in log
    assert "train: 100%" in log.replace("|", " ")
    keys = {"images_seen", "psnr", "pca_psnr", "train", "held_out"}
    assert json.loads((root / "metrics.json").read_text()).keys() == keys | {"format", "format_version"}
    kinds = ("diagonal", "full", "unit")
    of_prior = [f"{what}-{kind}.png" for what in ("neighbors", "samples") for kind in kinds]
    grids = sorted(path.name for path in (root / "run" / "grids" / "1936").glob("*.png"))
    in_training = ["training_reconstructions.png", "training_samples.png"]
    assert grids == sorted(["reconstructions.png", "interpolations.png", *of_prior, *in_training])
    sheet = np.asarray(Image.open(root / "run" / "grids" / "1936" / "reconstructions.png"))
    assert sheet.shape == (3 * 18 - 2, 8 * 18 - 2, 3)


def test_its_runs_are_linked_in_mlflow_and_hold_metrics_and_pictures(submitted: Submitted, mlflow_server: str) -> None:
    client = mlflow.MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("glo")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"preprocess", "train", "fit_prior", "render", "evaluate"}
    assert all(run.info.status == "FINISHED" for run in runs.values())
    ids = {name: run.info.run_id for name, run in runs.items()}
    assert runs["train"].data.tags["glo.input.dataset"] == ids["preprocess"]
    assert runs["fit_prior"].data.tags["glo.input.checkpoint"] == ids["train"]
    assert runs["render"].data.tags["glo.input.prior"] == ids["fit_prior"]
    assert runs["train"].data.params["code.dim"] == "4"
    assert runs["train"].inputs.dataset_inputs[0].dataset.name == "dataset"
    metrics = json.loads((submitted.root / "metrics.json").read_text())
    for key in ("loss", "train_psnr", "images_per_s", "learning_rate", "code_learning_rate", "code_norm"):
        steps = [point.step for point in client.get_metric_history(ids["train"], key)]
        assert steps[-1] == 1936 and len(steps) == 10
    assert client.get_metric_history(ids["train"], "psnr")[0].value == metrics["psnr"]
    # Where MLflow's own page finds pictures, with a key and a step in each name.
    shown = {file.path for file in client.list_artifacts(ids["render"], "images")}
    assert any("reconstructions" in path and "1936" in path and path.endswith(".png") for path in shown)
    grids = {Path(file.path).name for file in client.list_artifacts(ids["render"], "grids")}
    assert len(grids) == 8 and "samples-full.png" in grids


def test_its_evaluation_measures_both_kinds_of_images(submitted: Submitted, mlflow_server: str) -> None:
    run = submitted.root / "run"
    metrics = json.loads((submitted.root / "metrics.json").read_text())
    train, unseen = metrics["train"], metrics["held_out"]
    assert (train["glo"]["images"], unseen["glo"]["images"]) == (TRAINED, 100 - TRAINED)
    # Two ways to the same metrics: over ranks while training ends, and over tasks that read the checkpoint.
    assert train["glo"]["psnr"] == pytest.approx(metrics["psnr"], abs=1e-4)
    assert train["pca"]["psnr"] == pytest.approx(metrics["pca_psnr"], abs=1e-3)
    codes = pq.read_table(run / "evaluation" / "1936" / "held_out.parquet")
    manifest = Dataset.open(submitted.root / "dataset").held_out()
    assert codes.column("image_id").to_pylist() == manifest.ids.tolist()
    checkpoint = glo_core.Checkpoint.latest(run)
    target = manifest.take(np.arange(len(manifest.ids))).permute(0, 3, 1, 2) / 255

    def error(codes: torch.Tensor) -> float:
        with torch.no_grad():
            prediction = checkpoint.decoder()(codes).add(1).div(2).clamp(0, 1)
        return float((prediction - target).square().mean())

    assert error(torch.tensor(codes.column("code").to_pylist())) == pytest.approx(unseen["glo"]["mse"], rel=1e-4)
    # Training and evaluation both compare with the PCA that training has saved.
    baseline = PcaBaseline.load(run / "metrics" / "1936.safetensors")
    linear = baseline.reconstruct(manifest.take(np.arange(len(manifest.ids))))
    assert unseen["pca"]["mse"] == pytest.approx(float((linear - target).square().mean()), rel=1e-6)
    # Inversion begins with the mean code too.
    mean = torch.from_numpy(checkpoint.codes()[1]).mean(0, keepdim=True)
    assert unseen["glo"]["mse"] < error(torch.nn.functional.normalize(mean).expand(len(manifest.ids), -1))
    client = mlflow.MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("glo")
    (logged,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'evaluate'")
    assert logged.data.metrics["held_out_glo_psnr"] == pytest.approx(unseen["glo"]["psnr"])


def test_a_finished_evaluation_is_not_done_again_and_remembers_how_it_was_done(
    submitted: Submitted, caplog: pytest.LogCaptureFixture
) -> None:
    def again(*flags: str) -> EvaluateJob:
        line = ["--run", str(submitted.root / "run"), *flags]
        return parse("evaluate", EvaluateJob, argv=line, saved_config=jobs.evaluate.saved_config)

    assert again().steps == 20  # As the recipe said.
    with caplog.at_level(logging.INFO, "glo"):
        done = evaluate(again())
    assert "is up to date" in caplog.text
    assert done.held_out == read_record(submitted.root / "metrics.json", PipelineMetrics).held_out
    with pytest.raises(UserError, match=r"was made with another recipe \(steps: 20 -> 30\)"):
        evaluate(again("--steps", "30"))
    whole = jobs.pipeline.saved_config({"root": submitted.root})
    assert (whole["render"]["columns"], whole["evaluate"]["steps"]) == (4, 20)
    assert whole["fit_prior"]["kinds"] == ["unit", "diagonal", "full"]


def refused(job: TrainJob) -> str:
    with pytest.raises(UserError) as caught:
        run_training(job)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_finished_run_is_not_done_again_and_refuses_what_is_not_its_own(
    submitted: Submitted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, run = submitted.root / "dataset", submitted.root / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}

    def again(*flags: object) -> TrainJob:
        line = ["--dataset", dataset, "--run", run, "--images", 1936, *flags]
        return parse("train", TrainJob, argv=list(map(str, line)), saved_config=jobs.train.saved_config)

    with caplog.at_level(logging.INFO, "glo"):
        assert run_training(again()).images_seen == 1936
    assert "is up to date; more images to see than 1936 train on" in caplog.text
    changed = refused(again("--code.dim", 9, "--seed", 1))
    assert "was made with another recipe (code.dim: 4 -> 9; seed: 0 -> 1)" in changed
    assert "`workers` (=40) is more than the 32 lanes of `code_shards` (=32)" in refused(again("--workers", 40))
    assert "was made with another recipe (decoder.filters: [16, 8] -> [8])" in refused(again("--decoder.filters", 8))
    new = tmp_path / "new"
    assert "must have 2 entries for images of 16 px" in refused(again("--run", new, "--decoder.filters", 8))
    assert not (new / "run.json").exists()
    shutil.copytree(dataset, tmp_path / "other")
    snapshot = tmp_path / "other" / "snapshots" / "000001.json"
    snapshot.write_text(snapshot.read_text().replace('"digest": "', '"digest": "0'))
    other = refused(dataclasses.replace(again(), dataset=Location(tmp_path / "other")))
    assert "was made from other inputs (dataset: " in other
    assert "no dataset here" in refused(dataclasses.replace(again(), dataset=Location(tmp_path)))
    with file_lock(run):
        assert "in use by process" in refused(again())
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


@pytest.mark.usefixtures("session")
def test_an_error_of_a_stage_names_the_settings_of_the_pipeline(submitted: Submitted) -> None:
    line = ["--input", submitted.root.parent / "images", "--root", submitted.root, "--train.workers", 40]
    job = parse("pipeline", PipelineJob, argv=list(map(str, line)), saved_config=jobs.pipeline.saved_config)
    reason = r"`train.workers` \(=40\) is more than the 32 lanes of `preprocess.code_shards` \(=32\)"
    with pytest.raises(UserError, match=reason):
        run_pipeline(job)


def test_a_bad_flag_fails_the_job_with_the_reason_in_one_line(head: Head) -> None:
    done = submit(head, sys.executable, "-m", "jobs.train", "--dataset", "/d", "--run", "/r", "--wrokers", "2")
    assert done.returncode != 0
    lines = [line for line in done.stdout.splitlines() if "--wrokers" in line and line.startswith("train: error")]
    # Once in the job's log, and once more where Ray quotes its end.
    assert set(lines) == {"train: error: unknown flag --wrokers; did you mean --workers?"}
    assert "Traceback" not in done.stdout

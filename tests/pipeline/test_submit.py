"""The whole pipeline, submitted to a real head and tracked by a real MLflow server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
from PIL import Image

from .conftest import ROOT, Head, write_images

RECIPE = """
preprocess: {resolution: 16, channels: 3}
train:
  images: 2000
  batch_size: 32
  code: {dim: 4}
  decoder: {filters: [16, 8]}
  intervals: {report: 200}
render: {columns: 4, rows: 3, neighbours: 2}
"""


def submit(head: Head, *command: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    runtime = json.dumps({"env_vars": env or {}, "excludes": [".venv", ".git", "demo-run"]})
    line = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", f"--address={head.dashboard}",
            "--working-dir", str(ROOT), f"--runtime-env-json={runtime}", "--", *map(str, command)]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(line, capture_output=True, text=True, timeout=290, env=environment)


def test_a_submitted_pipeline_ends_in_mlflow(head: Head, mlflow_server: str, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 100, seed=5)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    root = tmp_path / "out"
    flags = ["--input", tmp_path / "images", "--root", root, "--recipe", recipe]
    tracked = {"MLFLOW_TRACKING_URI": mlflow_server}
    done = submit(head, "python", "jobs/pipeline.py", *flags, env=tracked)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    for line in ("preprocess: 100 new files", "train: 100 images of 16 px", "train: done", "fit_prior: ", "render: "):
        assert line in done.stdout
    assert "succeeded" in done.stdout

    metrics = json.loads((root / "metrics.json").read_text())
    assert metrics["images_seen"] == 2000
    assert {"psnr", "pca_psnr"} < metrics.keys()
    grids = sorted(path.name for path in (root / "run" / "grids" / "2000").glob("*.png"))
    kinds = ("diagonal", "full", "unit")
    of_prior = [f"{what}-{kind}.png" for what in ("neighbours", "samples") for kind in kinds]
    assert grids == sorted(["reconstructions.png", "interpolations.png", *of_prior])
    sheet = np.asarray(Image.open(root / "run" / "grids" / "2000" / "reconstructions.png"))
    assert sheet.shape == (3 * 18 - 2, 8 * 18 - 2, 3)

    client = mlflow.MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("glo")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"preprocess", "train", "fit_prior", "render"}
    assert all(run.info.status == "FINISHED" for run in runs.values())
    ids = {name: run.info.run_id for name, run in runs.items()}
    assert runs["train"].data.tags["glo.input.dataset"] == ids["preprocess"]
    assert runs["fit_prior"].data.tags["glo.input.checkpoint"] == ids["train"]
    assert runs["render"].data.tags["glo.input.prior"] == ids["fit_prior"]
    assert runs["train"].data.params["code.dim"] == "4"
    assert runs["train"].inputs.dataset_inputs[0].dataset.name == "dataset"
    for key in ("loss", "train_psnr", "images_per_s", "learning_rate", "code_learning_rate", "code_norm"):
        steps = [point.step for point in client.get_metric_history(ids["train"], key)]
        assert steps[-1] == 2000 and len(steps) == 10
    assert client.get_metric_history(ids["train"], "psnr")[0].value == metrics["psnr"]
    # As MLflow's own page finds pictures: images/<key>%step%<step>%....png
    shown = {file.path for file in client.list_artifacts(ids["render"], "images")}
    assert sum("reconstructions" in path and "%2000%" in path and path.endswith(".png") for path in shown) == 1
    kept = {Path(file.path).name for file in client.list_artifacts(ids["render"], "grids")}
    assert kept == set(grids)


def test_a_bad_flag_fails_the_job_with_the_reason_in_one_line(head: Head) -> None:
    done = submit(head, "python", "-m", "jobs.train", "--dataset", "/d", "--run", "/r", "--wrokers", "2")
    assert done.returncode != 0
    lines = [line for line in done.stdout.splitlines() if "--wrokers" in line and line.startswith("train: error")]
    assert lines == ["train: error: unrecognized arguments: --wrokers 2; --help lists every flag"]
    assert "Traceback" not in done.stdout

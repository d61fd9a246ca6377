"""All stages in order, each skipped where it is finished."""

import dataclasses
import json
import sys
from typing import Any

from glo_core.common.files import write_json
from glo_core.common.location import Location
from pipelines.common.ray_session import ray_session
from pipelines.common.tracking import tracking_uri
from pipelines.config import EvaluateJob, FitPriorJob, PipelineJob, RenderJob
from pipelines.evaluate import evaluate
from pipelines.fit_prior import fit_prior
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.job import preprocess
from pipelines.render import render
from pipelines.train.config import TrainJob
from pipelines.train.job import run_training


def run_pipeline(job: PipelineJob) -> None:
    """Run every stage that is not finished; ends with `<root>/metrics.json` and where to look."""
    dataset, run = Location(job.root / "dataset"), job.root / "run"
    tracking: dict[str, Any] = {"tracking_uri": job.tracking_uri, "experiment": job.experiment}
    with ray_session():
        preprocess(PreprocessJob(input=job.input, dataset=dataset, **_fields(job.preprocess), **tracking))
        done = run_training(TrainJob(dataset=dataset, run=run, **_fields(job.train), **tracking))
        fit_prior(FitPriorJob(run=run, **_fields(job.fit_prior), **tracking))
        grids = render(RenderJob(run=run, **_fields(job.render), **tracking))
        metrics = {key: done[key] for key in ("images_seen", "psnr", "pca_psnr")}
        write_json(job.root / "metrics.json", metrics)
        measured = evaluate(EvaluateJob(run=run, **_fields(job.evaluate), **tracking))
    metrics |= {key: measured[key] for key in ("train", "held_out") if key in measured}
    write_json(job.root / "metrics.json", metrics)
    print(f"\nmetrics  {job.root / 'metrics.json'}: {json.dumps(metrics)}")
    print(f"grids    {grids}")
    uri = tracking_uri(job, job.root)
    follow = uri if uri.startswith("http") else f"{sys.executable} -m mlflow ui --backend-store-uri {uri}"
    print(f"follow   {follow}", flush=True)


def _fields(config: Any) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}

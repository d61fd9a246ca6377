"""All stages in order, each skipped where it is finished."""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glo_core.blocks import DatasetConfig
from glo_core.files import write_json
from glo_core.location import Location
from glo_core.prior import PriorConfig
from pipelines.evaluation import EvaluateConfig, EvaluateJob, evaluate
from pipelines.fit_prior import FitPriorJob, fit_prior
from pipelines.ingest import PreprocessJob, preprocess
from pipelines.rendering import RenderConfig, RenderJob, render
from pipelines.session import ray_session
from pipelines.settings import TrainJob, TrainSettings
from pipelines.tracking import TrackingConfig, tracking_uri
from pipelines.training import run_training


@dataclass(frozen=True, kw_only=True)
class PipelineJob(TrackingConfig):
    """From folders of images to grids and figures in MLflow: preprocess, train, fit_prior, render, evaluate."""

    input: tuple[Location, ...]
    """Folders of image files, searched recursively; .tar shards, .parquet tables, .txt lists of paths; or URIs"""
    root: Path
    """Directory of everything that is made: dataset/, run/, mlflow.db, metrics.json"""
    preprocess: DatasetConfig = field(default_factory=DatasetConfig)
    train: TrainSettings = field(default_factory=TrainSettings)
    fit_prior: PriorConfig = field(default_factory=PriorConfig)
    render: RenderConfig = field(default_factory=RenderConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


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

"""All stages in order, each skipped where it is finished."""

import dataclasses
import json
import sys
from typing import Any

from glo_core.common.credentials import redact
from glo_core.common.errors import settings_of_stage
from glo_core.common.location import Location
from glo_core.common.records import write_record
from pipelines.common.ray_session import shared_ray_session
from pipelines.common.records import PipelineMetrics
from pipelines.common.tracking_config import tracking_uri
from pipelines.config import EvaluateJob, FitPriorJob, PipelineJob, RenderJob
from pipelines.preprocess.config import PreprocessJob
from pipelines.train.config import TrainJob

_TRACKING = {"tracking_uri": "tracking_uri", "experiment": "experiment"}
"""Settings that every stage has under the same name as the pipeline"""


def run_pipeline(job: PipelineJob) -> None:
    """Run every stage that is not finished; print the metrics, and where grids and runs are.

    Raises:
        UserError: as of the stages; it names the pipeline's settings, such as `train.batch_size`.
    """
    dataset, run = Location(job.root / "dataset"), job.root / "run"
    inputs: dict[str, Any] = {"input": job.input, "list_stores": job.list_stores}
    tracking: dict[str, Any] = {"tracking_uri": job.tracking_uri, "experiment": job.experiment}
    places: dict[str, Any] = {"run": run, "dataset": dataset, "decoder_kind": job.train.decoder.kind}
    with shared_ray_session():
        with settings_of_stage("preprocess", dataset="root", input="input", list_stores="list_stores", **_TRACKING):
            from pipelines.preprocess.job import preprocess  # Each stage when it is its turn: PyTorch takes seconds.

            preprocess(PreprocessJob(**inputs, dataset=dataset, **_fields(job.preprocess), **tracking))
        with settings_of_stage("train", dataset="root", run="root", code_shards="preprocess.code_shards", **_TRACKING):
            from pipelines.train.job import run_training

            done = run_training(TrainJob(dataset=dataset, run=run, **_fields(job.train), **tracking))
        with settings_of_stage("fit_prior", run="root", **_TRACKING):
            from pipelines.fit_prior import fit_prior

            fit_prior(FitPriorJob(run=run, **_fields(job.fit_prior), **tracking))
        with settings_of_stage("render", dataset="root", run="root", decoder_kind="train.decoder.kind", **_TRACKING):
            from pipelines.render import render

            grids = render(
                RenderJob(
                    run=run, dataset=dataset, decoder_kind=job.train.decoder.kind, **_fields(job.render), **tracking
                )
            )
        metrics = PipelineMetrics(images_seen=done.images_seen, psnr=done.psnr, pca_psnr=done.pca_psnr)
        write_record(job.root / "metrics.json", metrics)
        with settings_of_stage("evaluate", dataset="root", run="root", decoder_kind="train.decoder.kind", **_TRACKING):
            from pipelines.evaluate import evaluate

            quality = evaluate(EvaluateJob(**places, **_fields(job.evaluate), **tracking))
    metrics = dataclasses.replace(metrics, train=quality.train, held_out=quality.held_out)
    write_record(job.root / "metrics.json", metrics)
    print(f"\nmetrics  {job.root / 'metrics.json'}: {json.dumps(dataclasses.asdict(metrics))}")
    print(f"grids    {grids}")
    uri = tracking_uri(job, job.root)
    command = uri if uri.startswith("http") else f"{sys.executable} -m mlflow ui --backend-store-uri {uri}"
    print(f"follow   {redact(command)}", flush=True)


def _fields(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}

"""Fit the prior: moments of each code shard in its own Ray task, merged, and a Gaussian of each kind."""

import functools
from pathlib import Path
from typing import Any

import ray

from glo_core.checkpoint.reader import Checkpoint
from glo_core.common.errors import UserError
from glo_core.sampling.config import PriorConfig
from glo_core.sampling.gaussian_prior import GaussianPrior, Moments
from pipelines.common.ray_session import ray_session
from pipelines.common.stage import Input, identity_of, open_stage, run_id_of
from pipelines.config import FitPriorJob


def prior_directory(run: Path, images_seen: int) -> Path:
    return run / "prior" / str(images_seen)


@ray.remote
def shard_moments(directory: str, shard: int) -> Moments:
    """Moments of one code shard; only these d^2 numbers leave the task."""
    return Moments.of(Checkpoint(Path(directory)).shard(shard, ["code"])["code"])


def fit_prior(job: FitPriorJob) -> Path:
    """Fit every kind of prior and return the directory that holds them.

    Raises:
        UserError: if the run has no checkpoint, or a part of it is damaged.
    """
    checkpoint = Checkpoint.latest(job.run)
    images_seen = checkpoint.position.images_seen
    directory = prior_directory(job.run, images_seen)
    inputs = {"checkpoint": Input(checkpoint.directory, checkpoint.digest, run_id_of(job.run))}
    with open_stage(
        "fit_prior",
        directory,
        root=job.run.parent,
        identity=identity_of(job, PriorConfig),
        inputs=inputs,
        tracking=job,
    ) as stage:
        if stage.done:
            print(f"fit_prior: {directory} is up to date", flush=True)
            return directory
        stage.begin(stage.record["identity"])
        with ray_session():
            tasks = [shard_moments.remote(str(checkpoint.directory), s) for s in range(checkpoint.code_shards)]
            try:
                moments = functools.reduce(Moments.merge, ray.get(tasks))
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, UserError) else error from None
        figures = _save(job, moments, checkpoint.projection, directory)
        stage.tracker.metrics(figures, images_seen)
        stage.finish({"kinds": list(job.kinds), "codes": moments.count})
    print(f"fit_prior: {', '.join(job.kinds)} fitted to {moments.count} codes, in {directory}", flush=True)
    return directory


def _save(job: FitPriorJob, moments: Moments, projection: str, directory: Path) -> dict[str, Any]:
    for kind in job.kinds:
        GaussianPrior.fit(kind, moments, projection).save(directory / kind)
    return {
        "codes": float(moments.count),
        "code_variance": float(moments.covariance.trace()),
        "code_mean_norm": float((moments.mean @ moments.mean) ** 0.5),
    }

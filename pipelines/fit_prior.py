"""Fit the prior: moments of each code shard in its own Ray task, merged, and a Gaussian of each kind."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from glo_core.checkpoint.reader import Checkpoint
from glo_core.checkpoint.run_dataset import find_dataset
from glo_core.common.arrays import Int64Array
from glo_core.common.errors import UserError
from glo_core.sampling.config import PriorConfig
from glo_core.sampling.gaussian_prior import GaussianPrior, Moments
from pipelines.common.followup import FollowUp, newest_checkpoint
from pipelines.common.ray_data import ray_task
from pipelines.common.ray_session import task_results
from pipelines.common.records import FitPriorDone
from pipelines.common.stage import Stage
from pipelines.config import FitPriorJob

FIT_PRIOR = FollowUp("fit_prior", folder="prior", config_type=PriorConfig, done_type=FitPriorDone)
log = logging.getLogger("glo.fit_prior")


@ray_task
def shard_moments(directory: str, shard: int, removed: Int64Array) -> Moments:
    """Moments of one code shard without the images `removed` (int64 `[m]`); only these d^2 numbers leave the task."""
    codes = Checkpoint(Path(directory)).shard(shard, ["image_id", "code"])
    return Moments.of(codes["code"][~np.isin(codes["image_id"], removed)])


def removed_since(run: Path, checkpoint: Checkpoint) -> Int64Array:
    """Ids that the dataset of `run` has removed by now, int64 `[m]`; none where the dataset is not at hand."""
    try:
        dataset = find_dataset(run, checkpoint.snapshot)
    except (UserError, OSError) as error:
        log.warning("images that were removed since the checkpoint cannot be told: %s", error)
        dataset = None
    return np.empty(0, np.int64) if dataset is None else dataset.removed_by_now()


def fit_prior(job: FitPriorJob) -> Path:
    """Fit every kind of prior and return the directory that holds them, `<kind>/prior.json` and so on.

    Raises:
        UserError: if the run has no checkpoint, or a part of it is damaged.
    """
    checkpoint = newest_checkpoint(job.run)
    directory = FIT_PRIOR.directory(job.run, checkpoint)

    def prepare(stage: Stage[FitPriorDone]) -> Callable[[], FitPriorDone]:
        def fit() -> FitPriorDone:
            removed = removed_since(job.run, checkpoint)
            shards = range(checkpoint.code_shards)
            tasks = [shard_moments.remote(str(checkpoint.directory), shard, removed) for shard in shards]
            moments = functools.reduce(Moments.merge, task_results(tasks))
            for kind in job.kinds:
                GaussianPrior.fit(kind, moments, checkpoint.code_config.projection).save(directory / kind)
            stage.progress.metrics(_metrics(moments), checkpoint.position.images_seen)
            log.info("%s fitted to %d codes, in %s", ", ".join(job.kinds), moments.count, directory)
            return FitPriorDone(kinds=job.kinds, codes=moments.count)

        return fit

    FIT_PRIOR.run(job, job.run, checkpoint, prepare)
    return directory


def _metrics(moments: Moments) -> dict[str, float]:
    return {
        "codes": float(moments.count),
        "code_variance": float(moments.covariance.trace()),
        "code_mean_norm": float((moments.mean @ moments.mean) ** 0.5),
    }

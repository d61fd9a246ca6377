"""Fit the prior: moments of each code shard in its own Ray task, merged, and a Gaussian of each kind."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path

from glo_core.checkpoint.reader import Checkpoint
from glo_core.sampling.config import PriorConfig
from glo_core.sampling.gaussian_prior import GaussianPrior, Moments
from pipelines.common.followup import FollowUp
from pipelines.common.ray_data import ray_task
from pipelines.common.ray_session import task_results
from pipelines.common.records import FitPriorDone
from pipelines.common.stage import Stage
from pipelines.config import FitPriorJob

FIT_PRIOR = FollowUp("fit_prior", folder="prior", config_type=PriorConfig, done_type=FitPriorDone)
log = logging.getLogger("glo.fit_prior")


@ray_task
def shard_moments(directory: str, shard: int) -> Moments:
    """Moments of one code shard; only these d^2 numbers leave the task."""
    return Moments.of(Checkpoint(Path(directory)).shard(shard, ["code"])["code"])


def fit_prior(job: FitPriorJob) -> Path:
    """Fit every kind of prior and return the directory that holds them, `<kind>/prior.json` and so on.

    Raises:
        UserError: if the run has no checkpoint, or a part of it is damaged.
    """
    checkpoint = Checkpoint.latest(job.run)
    directory = FIT_PRIOR.directory(job.run, checkpoint)

    def prepare(stage: Stage[FitPriorDone]) -> Callable[[], FitPriorDone]:
        def fit() -> FitPriorDone:
            tasks = [shard_moments.remote(str(checkpoint.directory), shard) for shard in range(checkpoint.code_shards)]
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

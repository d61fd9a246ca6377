"""How Ray Train is told to carry a training out."""

from pathlib import Path

from ray.train.v2.api.config import FailureConfig, RunConfig

from glo_core.common.location import Location
from pipelines.train.config import TrainJob
from pipelines.train.ray_workers import failure_config


def test_ranks_do_not_wait_for_those_of_a_machine_that_is_taken_away() -> None:
    failures = failure_config(TrainJob(dataset=Location("/d"), run=Path("/r"), max_failures=7))
    assert isinstance(failures, FailureConfig)
    assert failures.relax_collectives_on_preemption
    assert failures.max_failures == 7
    assert failures.max_preemption_failures == -1  # Counted apart, and without a limit.
    assert RunConfig(failure_config=failures).failure_config == failures

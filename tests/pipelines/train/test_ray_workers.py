"""How Ray Train is told to carry a training out."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.train.v2._internal.execution import context
from ray.train.v2._internal.execution.preemption import PreemptionContext
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
from ray.train.v2.api.config import FailureConfig, RunConfig
from ray.train.v2.api.preemption import PreemptionInfo

from glo_core.common.failures import RankError, UnseenFileError
from glo_core.common.location import Location
from pipelines.train.config import TrainJob
from pipelines.train.mailbox import Mailbox
from pipelines.train.ray_runtime import RayRuntime
from pipelines.train.ray_workers import failure_config
from pipelines.train.worker import tell


def test_ranks_do_not_wait_for_those_of_a_machine_that_is_taken_away() -> None:
    failures = failure_config(TrainJob(dataset=Location("/d"), run=Path("/r"), max_failures=7))
    assert isinstance(failures, FailureConfig)
    assert failures.relax_collectives_on_preemption
    assert failures.max_failures == 7
    assert failures.max_preemption_failures == -1  # Counted apart, and without a limit.
    assert RunConfig(failure_config=failures).failure_config == failures


def test_a_rank_hears_of_a_preemption_without_waiting_for_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(preemption_context=PreemptionContext(), get_world_rank=lambda: 1)
    monkeypatch.setattr(context, "_train_context", told)
    runtime = RayRuntime.__new__(RayRuntime)  # Of a rank that no other one answers.
    assert not runtime.preempted()
    worker = RayTrainWorker.__new__(RayTrainWorker)
    worker.mark_preempt(PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"n": [0]}))
    assert runtime.preempted()


def test_a_part_that_rank_0_does_not_see_is_told_once() -> None:
    mailbox = Mailbox()
    unseen = UnseenFileError("codes/shard=007.arrow: rank 1 on h1 wrote 9 bytes, and rank 0 on h0 does not see it")
    tell(unseen, mailbox, 0)
    tell(RankError("rank 0 on h0 failed"), mailbox, 1)
    (line,) = mailbox.take_incidents()
    assert "shard=007.arrow: rank 1 on h1 wrote 9 bytes, and rank 0 on h0 does not see it" in line
    assert mailbox.failure() is None

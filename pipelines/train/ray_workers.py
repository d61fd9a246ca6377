"""Ray Train: each worker runs `glo_core`'s `train_phase` on its own lanes; the driver tracks it and can stop it.

rank 0: metrics ---> Mailbox (an actor) ---> driver: MLflow
driver: Ctrl-C ---> Mailbox ---> rank 0 ---> every rank
"""

import shutil
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from glo_core.common.errors import UserError
from pipelines.common.ray_data import unregister_pickled_objects
from pipelines.common.records import TrainDone
from pipelines.common.stage import Stage
from pipelines.train.arguments import WorkerArguments
from pipelines.train.config import TrainJob
from pipelines.train.driver import drain_reports, stop_on_signals
from pipelines.train.mailbox import Mailbox
from pipelines.train.ray_runtime import ActorMailbox, RayRuntime
from pipelines.train.start_watch import watch_start
from pipelines.train.worker import train_rank

unregister_pickled_objects()  # `import ray.train` has imported Ray Data.


@dataclass(frozen=True)
class RayWorkers:
    """The workers of Ray Train; see `Workers`."""

    resources: dict[str, float]

    def prepare(self, arguments: WorkerArguments) -> None:
        """Do nothing: there are no workers yet."""

    def require_prepared(self) -> None:
        """Do nothing: the driver has looked at decoder and loss."""

    def begin(self) -> None:
        """Do nothing: there are no workers yet."""

    def fit(self, job: TrainJob, stage: Stage[TrainDone], arguments: WorkerArguments) -> None:
        """Train; see `Workers`."""
        # On the driver's node: the actor must outlive every other node.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
        mailbox = ActorMailbox(actor)
        with (
            watch_start(job.workers, self.resources) as watch,
            stop_on_signals(mailbox, watch),
            drain_reports(mailbox, stage, arguments.phase.target),
        ):
            error: Exception | None = None
            try:
                _run_trainer(job, {"arguments": arguments, "mailbox": actor}, self.resources)
            except ray.train.TrainingFailedError as caught:
                error = caught
            # A rank's own words come first: Ray's report of the last attempt has the end of a traceback alone.
            failure = mailbox.failure()
            if failure is not None:
                raise failure from error
            if error is not None:
                raise _reason(error) from error


def _run_trainer(job: TrainJob, loop_config: dict[str, Any], resources: dict[str, float]) -> None:
    """Start `train_worker` on the workers, again where they are lost.

    Raises:
        TrainingFailedError: if the last attempt failed.
    """
    fewest, most = job.fewest_and_most_workers
    workers: Any = fewest if fewest == most else (fewest, most)  # Ray's annotation lacks the range.
    # Ray Train needs a directory of its own, although it stores no checkpoint.
    storage = job.run / "ray"
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=loop_config,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu="GPU" in resources, resources_per_worker=resources),
        run_config=RunConfig(
            name=f"phase-{loop_config['arguments'].phase.number}-{uuid.uuid4().hex[:8]}",
            storage_path=str(storage),
            failure_config=failure_config(job),
        ),
    )
    try:
        _off_main_thread(trainer.fit)
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def failure_config(job: TrainJob) -> Any:
    """What Ray Train does when workers are lost, or a machine is about to be taken away."""
    return FailureConfig(
        max_failures=job.max_failures,
        # The other ranks then hear of it without waiting for those of that machine.
        relax_collectives_on_preemption=True,  # type: ignore[call-arg]  # Ray's annotation is of its first version.
    )


def _off_main_thread(fit: Callable[[], Any]) -> None:
    """Call `fit` where Ray Train does not take Ctrl-C for itself, which would kill the workers without a checkpoint."""
    outcome: Future[Any] = Future()

    def call() -> None:
        try:
            outcome.set_result(fit())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, name="fit", daemon=True).start()
    outcome.result()


def train_worker(loop_config: dict[str, Any]) -> None:
    """What each Ray Train worker runs.

    Args:
        loop_config: has the `arguments`, and the handle of the `mailbox`.
    """
    mailbox = ActorMailbox(loop_config["mailbox"])
    if mailbox.failure():
        return  # Ray Train starts workers again after any error; a user's error would only come back.
    runtime = RayRuntime(ray.train.torch.get_device(), mailbox.actor)
    train_rank(loop_config["arguments"], runtime, mailbox)  # Its error ends the other workers, which wait for this one.


def _reason(error: Exception) -> UserError:
    """The one line behind Ray's report of a failure."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    lines = str(failures[0]).strip().splitlines()
    return UserError(f"training failed: {lines[-1] if lines else type(failures[0]).__name__}")

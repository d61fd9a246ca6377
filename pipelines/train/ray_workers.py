"""Ray Train: each worker runs `glo_core`'s `train_phase` on its own lanes; the driver tracks it and can stop it.

rank 0: metrics ---> Mailbox (an actor) ---> driver: MLflow
driver: Ctrl-C ---> Mailbox ---> rank 0 ---> every rank
"""

import shutil
import socket
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from glo_core.checkpoint.attempt import FencedError
from glo_core.common.errors import UserError, one_line
from glo_core.common.failures import RankError, user_error_of
from glo_core.data.config import Cache
from glo_core.data.dataset import Dataset
from glo_core.training.config import Intervals, ResolvedTrainConfig
from glo_core.training.loop import train_phase
from glo_core.training.schedule import Phase
from pipelines.common.ray_data import unregister_pickled_objects
from pipelines.common.records import TrainDone
from pipelines.common.stage import Stage
from pipelines.train.config import TrainJob
from pipelines.train.driver import drain_reports, stop_on_signals
from pipelines.train.ray_runtime import Mailbox, RayRuntime
from pipelines.train.start_watch import watch_start

unregister_pickled_objects()  # `import ray.train` has imported Ray Data.

_ERRORS_OF_CODE = (TypeError, ValueError, AttributeError, LookupError, ImportError, AssertionError, NotImplementedError)
"""Of this project, or of the user's own decoder or loss: another attempt would raise them again"""


@dataclass(frozen=True, kw_only=True)
class WorkerArguments:
    """What each Ray Train worker is told."""

    recipe: ResolvedTrainConfig
    phase: Phase
    intervals: Intervals
    dataset: str
    """Directory or URI"""
    snapshot: str
    """Digest of the snapshot to train on"""
    run: Path
    scratch: Path | None
    cache: Cache
    warm_start: Path | None
    """Directory of a checkpoint whose decoder a new run starts from"""
    mailbox: Any
    """Handle of a `Mailbox` actor"""
    threads: int
    """Of PyTorch, in each worker"""


def fit(
    job: TrainJob,
    recipe: ResolvedTrainConfig,
    stage: Stage[TrainDone],
    phase: Phase,
    snapshot: str,
    resources: dict[str, float],
    decoder: Path | None,
) -> None:
    """Train `phase` on `snapshot` with Ray Train, from the decoder in the directory `decoder` if one is given.

    Args:
        snapshot: its digest.
        resources: CPUs and GPUs of each worker.

    Raises:
        UserError: if training failed for a reason that the user can mend.
    """
    # On the driver's node: the actor must outlive every other node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox: Any = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
    arguments = WorkerArguments(
        recipe=recipe,
        phase=phase,
        intervals=job.intervals,
        dataset=str(job.dataset),
        snapshot=snapshot,
        run=job.run,
        scratch=job.scratch,
        cache=job.cache,
        warm_start=decoder,
        mailbox=mailbox,
        threads=max(1, int(resources["CPU"])),
    )
    with (
        watch_start(job.workers, resources) as watch,
        stop_on_signals(mailbox, watch),
        drain_reports(mailbox, stage, phase.target),
    ):
        error: Exception | None = None
        try:
            _run_trainer(job, f"phase-{phase.number}", arguments, resources)
        except ray.train.TrainingFailedError as caught:
            error = caught
        # A rank's own words come first: Ray's report of the last attempt has the end of a traceback alone.
        failure: UserError | None = ray.get(mailbox.failure.remote())
        if failure is not None:
            raise failure from error
        if error is not None:
            raise _reason(error) from error


def _run_trainer(job: TrainJob, name: str, arguments: WorkerArguments, resources: dict[str, float]) -> None:
    """Train with Ray Train.

    Raises:
        TrainingFailedError: if the last attempt failed.
    """
    fewest, most = job.fewest_and_most_workers
    workers: Any = fewest if fewest == most else (fewest, most)  # Ray's annotation lacks the range.
    # Ray Train needs a directory of its own, although it stores no checkpoint.
    storage = job.run / "ray"
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"arguments": arguments},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu="GPU" in resources, resources_per_worker=resources),
        run_config=RunConfig(
            name=f"{name}-{uuid.uuid4().hex[:8]}",
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


def train_worker(loop_config: dict[str, WorkerArguments]) -> None:
    """What each Ray Train worker runs.

    Args:
        loop_config: has the `arguments`.
    """
    arguments = loop_config["arguments"]
    if ray.get(arguments.mailbox.failure.remote()):
        return  # Ray Train starts workers again after any error; a user's error would only come back.
    # Ray sets OMP_NUM_THREADS=1, which would leave most of a worker's CPUs idle.
    torch.set_num_threads(arguments.threads)
    runtime = RayRuntime(ray.train.torch.get_device(), arguments.mailbox)
    try:
        dataset = Dataset.open(arguments.dataset).at(arguments.snapshot)
        train_phase(
            arguments.recipe,
            dataset.images(()),  # No shard yet: the loop selects its own.
            arguments.phase,
            runtime=runtime,
            run=arguments.run,
            intervals=arguments.intervals,
            scratch=arguments.scratch,
            cache=arguments.cache,
            warm_start=arguments.warm_start,
        )
    except Exception as error:
        _tell(error, arguments.mailbox, runtime.rank)
        raise  # Ends the other workers, which wait for this one.


def _tell(error: Exception, mailbox: Any, rank: int) -> None:
    """Tell the driver whose `error` is, before Ray Train starts the workers again.

    The user's would come again, and so would an error of the code: the next attempt then ends at once. After one of the
    machine the next attempt goes on from the last checkpoint. A lost process, the third class, tells nothing.
    """
    if isinstance(error, FencedError):
        return  # Ray has given this group up, and another one trains.
    user_error = user_error_of(error)
    if user_error is None and isinstance(error, _ERRORS_OF_CODE):
        user_error = UserError(f"training failed: {one_line(error)}")
    if user_error is not None:
        ray.get(mailbox.put_failure.remote(user_error))
    elif not isinstance(error, RankError):  # Its own rank tells.
        ray.get(mailbox.put_incident.remote(f"rank {rank} on {socket.gethostname()} failed: {one_line(error)[:300]}"))


def _reason(error: Exception) -> UserError:
    """The one line behind Ray's report of a failure."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    lines = str(failures[0]).strip().splitlines()
    return UserError(f"training failed: {lines[-1] if lines else type(failures[0]).__name__}")

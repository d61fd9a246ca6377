"""Ray Train: the driver tracks and can ask to stop, workers run `glo_core`'s `train_phase` on their own lanes.

driver: stage, phase, MLflow  <--- Mailbox (an actor) ---  rank 0: metrics;  Mailbox ---> every rank: stop?
"""

import dataclasses
import math
import shutil
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from glo_core.common.errors import UserError
from glo_core.data.dataset import Dataset
from glo_core.training.config import TrainConfig
from glo_core.training.loop import train_phase
from glo_core.training.schedule import Phase
from pipelines.common.ray_session import num_cpus
from pipelines.common.stage import Stage
from pipelines.train.config import TrainJob
from pipelines.train.driver import drain_reports, stop_on_signals
from pipelines.train.ray_runtime import Mailbox, RayRuntime


def fit(
    job: TrainJob, stage: Stage, phase: Phase, snapshot: str, resources: dict[str, float], decoder: Path | None
) -> None:
    """Train `phase` on `snapshot` with Ray Train, from the decoder in the directory `decoder` if one is given.

    Raises:
        UserError: if training failed for a reason that the user can mend.
    """
    # Beside the driver: it must outlive every other node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox: Any = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
    config = TrainConfig(**{f.name: getattr(job, f.name) for f in dataclasses.fields(TrainConfig)})
    arguments = {
        "config": config,
        "phase": phase,
        "intervals": job.intervals,
        "dataset": str(job.dataset),
        "snapshot": snapshot,
        "run": str(job.run),
        "mailbox": mailbox,
        "scratch": job.scratch,
        "cache": job.cache,
        "warm_start": decoder,
        "threads": max(1, int(resources["CPU"])),
    }
    fewest, most = job.fewest_and_most_workers
    workers: Any = fewest if fewest == most else (fewest, most)  # Ray's annotation knows no range.
    # Ray Train wants a place of its own, and is never the keeper of a checkpoint.
    scratch = job.run / "ray"
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=arguments,
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=f"phase-{phase.number}-{uuid.uuid4().hex[:8]}",
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=job.max_failures),
        ),
    )
    with stop_on_signals(mailbox), drain_reports(mailbox, stage, phase.target):
        try:
            _off_main_thread(trainer.fit)
        except ray.train.TrainingFailedError as error:
            raise _reason(error) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        failure = ray.get(mailbox.failure.remote())
        if failure:
            raise UserError(failure)


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


def worker_resources(job: TrainJob) -> dict[str, float]:
    """An even share of the cluster's CPUs, and a GPU where the job wants one."""
    fewest, most = job.fewest_and_most_workers
    gpus = int(ray.cluster_resources().get("GPU", 0))
    use_gpu = job.device == "gpu" or (job.device == "auto" and gpus >= fewest and gpus > 0)
    if use_gpu and gpus < fewest:
        raise UserError(
            f"device=gpu with workers={job.workers} needs as many GPUs, and the cluster has {gpus}; "
            "use fewer workers, or device=cpu"
        )
    # Of a range, as many as there are nodes or GPUs now share the CPUs.
    nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    expected = min(most, max(fewest, gpus if use_gpu else nodes))
    share = job.cpus_per_worker or num_cpus() / expected
    cpus = {"CPU": float(math.floor(share)) if share >= 1 else share}
    return cpus | ({"GPU": 1.0} if use_gpu else {})


def train_worker(arguments: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    mailbox = arguments["mailbox"]
    if ray.get(mailbox.failure.remote()):
        return  # Ray Train starts workers again after any error; one of the user's would only come back.
    # Ray sets OMP_NUM_THREADS=1, which would leave most of a worker's share idle.
    torch.set_num_threads(arguments["threads"])
    runtime = RayRuntime(ray.train.torch.get_device(), mailbox)
    try:
        dataset = Dataset.open(arguments["dataset"]).at(arguments["snapshot"])
        train_phase(
            arguments["config"],
            dataset.images(()),  # No shard yet: the loop selects its own.
            arguments["phase"],
            runtime=runtime,
            run=Path(arguments["run"]),
            intervals=arguments["intervals"],
            scratch=arguments["scratch"],
            cache=arguments["cache"],
            warm_start=arguments["warm_start"],
        )
    except UserError as error:
        ray.get(mailbox.fail.remote(str(error)))
        raise  # Ends the other workers, which wait for this one.


def _reason(error: Exception) -> UserError:
    """The one line behind Ray's report of a failure."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    lines = str(failures[0]).strip().splitlines()
    return UserError(f"training failed: {lines[-1] if lines else type(failures[0]).__name__}")

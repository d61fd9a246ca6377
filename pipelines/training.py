"""Training on Ray Train: each worker owns lanes of the code table; the driver tracks and can ask to stop.

driver: stage, phase, MLflow  <--- Desk (an actor) ---  rank 0: metrics;  Desk ---> every rank: stop?
workers: glo_core.loop.train on their own lanes of the mapped blocks
"""

import dataclasses
import math
import shutil
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from glo_core import order
from glo_core.cache import Cache
from glo_core.checkpoint import DECODER_PARTS, MARK, Checkpoint, committed
from glo_core.dataset import Dataset
from glo_core.decoder import Shape, cost, make_decoder, num_parameters
from glo_core.defaults import completed, images_to_see
from glo_core.epochs import too_many_workers
from glo_core.files import UserError, read_json, write_bytes
from glo_core.keeper import Intervals
from glo_core.location import Location
from glo_core.loop import Phase, train
from glo_core.losses import make_loss
from glo_core.step import TrainConfig
from pipelines.desk import Desk, RayRuntime, following, stopping
from pipelines.ledger import Ledger
from pipelines.session import num_cpus, ray_session
from pipelines.stage import Input, Stage, identity_of, open_stage, run_id_of
from pipelines.tracking import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TrainConfig):
    """A recipe of training, its length, and how it is carried out."""

    images: int = 0
    """Images to see in all, a larger number on a finished run trains on; 0 for the rule's, see docs/training.md"""
    workers: int | str = 1
    """Ray Train workers, or a range such as 1:8 for as many as the cluster has room for while it
    grows and shrinks; the result does not depend on it"""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes a GPU for each worker where the cluster has them"""
    cpus_per_worker: float = 0.0
    """CPUs of each worker; 0 for an even share of the cluster's"""
    max_failures: int = 3
    """Lost workers after which training gives up; each time it goes on from the last checkpoint"""
    cache: Cache = "auto"
    """Where images lie: on the device, in host memory, or in their mapped blocks; auto takes the fastest with room"""
    scratch: Path | None = None
    """Directory on each node's local disk for codes that `window` keeps out of memory (default: the temporary one)"""
    warm_start: Path | None = None
    """Another run, from whose decoder as it is now a new run starts"""
    intervals: Intervals = dataclasses.field(default_factory=Intervals)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 0:
            raise ValueError(f"`images` (={self.images}) must be at least 1, or 0 for the rule's")
        fewest, colon, most = str(self.workers).partition(":")
        numbers = [fewest, most] if colon else [fewest]
        if not all(number.isdecimal() and int(number) for number in numbers) or int(numbers[0]) > int(numbers[-1]):
            raise ValueError(f"`workers` (={self.workers}) must be a number from 1 on, or a range such as 1:8")

    @property
    def fewest_and_most_workers(self) -> tuple[int, int]:
        fewest, _, most = str(self.workers).partition(":")
        return int(fewest), int(most or fewest)


@dataclass(frozen=True, kw_only=True)
class TrainJob(TrainSettings, TrackingConfig):
    """Train codes and decoder on a dataset; the same command again goes on where it stopped."""

    dataset: Location
    """Directory or URI of the dataset"""
    run: Path
    """Directory of the run, made if it is not there"""


def run_training(job: TrainJob) -> dict[str, Any]:
    """Train, and return what `done.json` holds.

    Raises:
        UserError: if the run belongs to another dataset or recipe or is in use, there are more workers than lanes,
            the cluster is too small, or training failed for a reason that the user can mend.
    """
    dataset = Dataset.open(job.dataset)
    job = _completed(job, dataset)
    _check(job, dataset)
    made_by = dataset.snapshots[-1].get("mlflow_run_id")
    inputs = {"dataset": Input(job.dataset, dataset.root_digest, made_by)}
    warm_start = _warm_start(job)
    if warm_start is not None and job.warm_start is not None:
        warm_start.require_decoder(job.decoder, _shape(job, dataset))
        inputs["warm_start"] = Input(job.warm_start, warm_start.digest, run_id_of(job.warm_start))
    with open_stage(
        "train",
        job.run,
        root=job.run.parent,
        identity=identity_of(job, TrainConfig),
        defaults=identity_of(TrainConfig(), TrainConfig),
        inputs=inputs,
        tracking=job,
    ) as stage:
        phase, snapshot = _phase(stage, job, dataset)
        if phase is None:
            done = stage.done or {}
            print(
                f"train: {job.run} has seen {done['images_seen']} images already, nothing to do; "
                f"--images above that trains on. {_figures(done)}",
                flush=True,
            )
            _send_rest(stage, job)
            return done
        with ray_session():
            resources = _worker_resources(job)
            # Before the record says that it is there.
            decoder = _keep_decoder(warm_start, job.run / "warm_start") if warm_start is not None else None
            length = {"images": phase.target, "workers": job.workers, "device": job.device}
            stage.begin({**stage.record["identity"], f"phase.{phase.number}": length})
            _print_plan(job, dataset, phase)
            _fit(job, stage, phase, snapshot, resources, decoder)
        position = Checkpoint.latest(job.run).position
        if position.images_seen < phase.target:
            print(
                f"train: stopped at {position.images_seen} of {phase.target} images with a checkpoint; "
                "the same command goes on",
                flush=True,
            )
            raise SystemExit(130)
        metrics = read_json(job.run / "metrics" / f"{position.images_seen}.json")
        figures = {key: metrics[key] for key in ("images_seen", "psnr", "pca_psnr")}
        stage.finish({**figures, "phase": phase.number, "snapshot": snapshot})
        print(f"train: done, {job.run} has seen {position.images_seen} images. {_figures(metrics)}", flush=True)
        return stage.done or {}


def _send_rest(stage: Stage, job: TrainJob) -> None:
    """Send what MLflow missed of a finished run."""
    ledger, done = Ledger(job.run), stage.done
    if not ledger.behind or done is None:
        return
    try:
        stage.begin(stage.record["identity"])
        ledger.send(stage.tracker)
    except UserError as error:
        print(f"train: {error}; progress.jsonl has what it missed", flush=True)
    stage.done = done


def _warm_start(job: TrainJob) -> Checkpoint | None:
    """The checkpoint whose decoder a run starts from: the newest when it began, of which it keeps a copy."""
    if job.warm_start is None:
        return None
    record = job.run / "run.json"
    began_with = read_json(record)["paths"].get("warm_start") if record.exists() else None
    kept = job.run / "warm_start"
    if began_with == str(job.warm_start) and (kept / MARK).exists():
        return Checkpoint(kept)
    return Checkpoint.latest(job.warm_start)


def _keep_decoder(checkpoint: Checkpoint, directory: Path) -> Path:
    """Copy a checkpoint's decoder, so that the other run may train on, or go, meanwhile."""
    if checkpoint.directory != directory:
        for name in (*DECODER_PARTS, MARK):  # The mark last.
            source = checkpoint.directory / MARK if name == MARK else checkpoint.part(name)
            write_bytes(directory / name, source.read_bytes())
    return directory


def _figures(metrics: dict[str, Any]) -> str:
    ours, pca = metrics["psnr"], metrics["pca_psnr"]
    return f"PSNR {ours:.2f} dB; PCA of the same dimension, on the same images: {pca:.2f} dB"


def _completed(job: TrainJob, dataset: Dataset) -> TrainJob:
    """`job` with a batch size, a code dimension and filters: the run's own, or else by the rule for this dataset."""
    record = job.run / "run.json"
    if record.exists():
        identity = read_json(record).get("identity", {})
        code = dataclasses.replace(job.code, dim=job.code.dim or identity.get("code", {}).get("dim", 0))
        filters = job.decoder.filters or tuple(identity.get("decoder", {}).get("filters", ()))
        decoder = dataclasses.replace(job.decoder, filters=filters)
        batch_size = job.batch_size or identity.get("batch_size", 0)
        job = dataclasses.replace(job, batch_size=batch_size, code=code, decoder=decoder)
    return completed(job, dataset.num_train, dataset.config.resolution)


def _shape(job: TrainJob, dataset: Dataset) -> Shape:
    return Shape(job.code.dim, dataset.config.resolution, dataset.config.channels)


def _check(job: TrainJob, dataset: Dataset) -> None:
    """Refuse what cannot be trained, before anything records it."""
    if not dataset.num_train:
        raise UserError(f"{job.dataset}: has no training image; preprocess a folder that has some")
    try:
        make_decoder(job.decoder, **_shape(job, dataset)._asdict())
        make_loss(job.loss, job.pyramid, job.perceptual_network, dataset.config.resolution, torch.device("cpu"))
    except ValueError as error:
        raise UserError(f"{job.dataset}: {error}") from None
    lanes = order.num_lanes(dataset.config.code_shards, job.batch_size)
    _, most = job.fewest_and_most_workers
    if most > lanes:
        raise UserError(too_many_workers(most, dataset.config.code_shards, job.batch_size))


def _print_plan(job: TrainJob, dataset: Dataset, phase: Phase) -> None:
    config = dataset.config
    decoder = make_decoder(job.decoder, **_shape(job, dataset)._asdict())
    lanes = order.num_lanes(config.code_shards, job.batch_size)
    _, most = job.fewest_and_most_workers
    overload = order.overload(world_size=most, lanes=lanes)
    print(
        f"train: {dataset.num_train} images of {config.resolution} px, {config.channels} channel(s); codes of "
        f"{job.code.dim}; batches of {job.batch_size}; to {phase.target:,} images seen "
        f"({phase.target / max(dataset.num_train, 1):.1f} epochs); {job.workers} worker(s) on {lanes} lanes",
        flush=True,
    )
    print(f"train: decoder {job.decoder.kind} {_cost_of(job, decoder)}", flush=True)
    if overload > 1:
        print(
            f"train: {lanes} lanes do not divide among {most} workers: the slowest carries "
            f"{overload:.2f} times an even share",
            flush=True,
        )


def _cost_of(job: TrainJob, decoder: torch.nn.Module) -> str:
    parameters = num_parameters(decoder)
    taken = cost(decoder, job.code.dim)
    if taken is None:
        return f"of {parameters:,} parameters; its operations cannot be counted"
    # A step keeps weights, their gradient, Adam's two moments and their average, and what the backward pass needs.
    size = 8 if job.precision == "float64" else 4
    memory = size * (5 * parameters + job.batch_size * taken.activations)
    return (
        f"of {parameters:,} parameters, {taken.flops / 1e6:,.1f} MFLOP to decode an image; about "
        f"{memory / 2**20:,.0f} MiB for a step of {job.batch_size} images"
    )


def _phase(stage: Stage, job: TrainJob, dataset: Dataset) -> tuple[Phase | None, str]:
    """The phase to train, entered in the record, and its snapshot; None if its target was reached before."""
    phases: list[dict[str, Any]] = stage.record.setdefault("phases", [])
    marks = committed(job.run)
    seen = 0
    if marks:
        newest = Checkpoint(marks[-1])
        seen = newest.position.images_seen
        dataset.at(newest.snapshot)  # Refuse a dataset that no longer holds what was trained on.
    finished = stage.done is not None and stage.done["phase"] == len(phases) - 1
    begun = phases[-1]["target"] if phases and not finished else 0
    target = job.images or begun or images_to_see(dataset.num_train)
    if finished and not job.images and phases[-1]["snapshot"] != dataset.digest:
        target = max(target, seen + dataset.num_train)  # New images are seen too, an epoch at least.
    if begun and begun == target:
        last = phases[-1]
        dataset.at(last["snapshot"])
    elif seen < target:
        last = {"start": seen, "target": target, "snapshot": dataset.digest}
        phases.append(last)
    elif finished:
        return None, ""
    else:
        raise UserError(
            f"{job.run}: has seen {seen} images on the way to {begun}; images={job.images} must be "
            f"{begun} to go on there, or more than {seen}"
        )
    phase = Phase(number=len(phases) - 1, start=last["start"], target=last["target"])
    return phase, last["snapshot"]


# ---------------------------------------------------------------- driver and workers


def _fit(
    job: TrainJob, stage: Stage, phase: Phase, snapshot: str, resources: dict[str, float], decoder: Path | None
) -> None:
    # Beside the driver: it must outlive every other node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk: Any = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote()
    config = TrainConfig(**{f.name: getattr(job, f.name) for f in dataclasses.fields(TrainConfig)})
    arguments = {
        "config": config,
        "phase": phase,
        "intervals": job.intervals,
        "dataset": str(job.dataset),
        "snapshot": snapshot,
        "run": str(job.run),
        "desk": desk,
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
    with stopping(desk), following(desk, stage, phase.target):
        try:
            _off_main_thread(trainer.fit)
        except ray.train.TrainingFailedError as error:
            raise _reason(error) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        failure = ray.get(desk.failure.remote())
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


def _worker_resources(job: TrainJob) -> dict[str, float]:
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
    desk = arguments["desk"]
    if ray.get(desk.failure.remote()):
        return  # Ray Train starts workers again after any error; one of the user's would only come back.
    # Ray sets OMP_NUM_THREADS=1, which would leave most of a worker's share idle.
    torch.set_num_threads(arguments["threads"])
    runtime = RayRuntime(ray.train.torch.get_device(), desk)
    try:
        dataset = Dataset.open(arguments["dataset"]).at(arguments["snapshot"])
        train(
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
        ray.get(desk.fail.remote(str(error)))
        raise  # Ends the other workers, which wait for this one.


def _reason(error: Exception) -> UserError:
    """The one line behind Ray's report of a failure."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    lines = str(failures[0]).strip().splitlines()
    return UserError(f"training failed: {lines[-1] if lines else type(failures[0]).__name__}")

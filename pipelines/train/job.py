"""Training: which run, from what, for how long; `local_worker` or `ray_workers` does the training itself."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from glo_core.checkpoint.layout import DECODER_PARTS, MARK, committed_checkpoints, metrics_path
from glo_core.common.errors import ConfigError, DatasetError
from glo_core.common.files import write_bytes
from glo_core.common.records import read_record
from glo_core.data.dataset import Dataset
from glo_core.data.lanes import num_lanes
from glo_core.data.lanes import overload as overload_of
from glo_core.decoder.config import Shape
from glo_core.evaluation.record import MetricsRecord
from glo_core.training.config import ResolvedTrainConfig
from glo_core.training.schedule import Phase
from pipelines.common.ray_session import ray_session
from pipelines.common.records import TrainDone, read_run_record
from pipelines.common.stage import Input, Stage, identity_of, open_stage, run_id_of
from pipelines.common.stop_signals import STOPPED_STATUS
from pipelines.common.tracking import import_mlflow
from pipelines.train.arguments import WorkerArguments
from pipelines.train.config import TrainJob
from pipelines.train.local_worker import LocalWorker, WorkerHere
from pipelines.train.phases import next_phase, resolve_recipe
from pipelines.train.resources import resources_here, trains_here, worker_resources
from pipelines.train.workers import Workers

if TYPE_CHECKING:  # It brings PyTorch, which takes seconds; a new run on this machine needs it in the worker alone.
    from glo_core.checkpoint.reader import Checkpoint

log = logging.getLogger("glo.train")
_WARM_START = "warm_start"
"""Folder of a run that has a copy of the decoder that it started from"""


def run_training(job: TrainJob, worker: LocalWorker | None = None) -> TrainDone:
    """Train, and return what `done.json` holds.

    Args:
        job: what to train.
        worker: one that was started while this module was imported, for a training that needs no Ray.

    Raises:
        UserError: if the run belongs to another dataset or recipe or is in use, there are more workers than lanes,
            the cluster is too small, or training failed for a reason that the user can mend.
        SystemExit: of status 130, if training stopped on request before its target, with a checkpoint.
    """
    dataset = Dataset.open(job.dataset)
    recipe = resolve_recipe(job, dataset)
    made_by = dataset.snapshots[-1].mlflow_run_id
    inputs = {"dataset": Input(job.dataset, dataset.root_digest, made_by)}
    warm_start = _warm_start(job)
    if warm_start is not None and job.warm_start is not None:
        from glo_core.training.restore import require_decoder

        shape = Shape(recipe.code.dim, dataset.config.resolution, dataset.config.channels)
        require_decoder(warm_start, recipe.decoder, shape)
        inputs["warm_start"] = Input(job.warm_start, warm_start.digest, run_id_of(job.warm_start))
    with open_stage(
        "train",
        job.run,
        root=job.run.parent,
        identity=identity_of(recipe, ResolvedTrainConfig),
        inputs=inputs,
        done_type=TrainDone,
        tracking=job,
    ) as stage:
        _require_trainable(job, recipe, dataset)
        phase = next_phase(stage, job, dataset)
        if phase is not None:
            done = _train_phase(job, recipe, dataset, stage, phase, warm_start, worker)
        else:
            assert stage.done is not None
            done = stage.done
            more = ", also on images added since" if dataset.digest != done.snapshot else ""
            log.info("%s is up to date; more images to see than %d train on%s", job.run, done.images_seen, more)
            stage.send_rest()
    print(
        f"train: done, {job.run} has seen {done.images_seen} images. PSNR {done.psnr:.2f} dB; "
        f"PCA of the same dimension, on the same images: {done.pca_psnr:.2f} dB",
        flush=True,
    )
    return done


def _train_phase(
    job: TrainJob,
    recipe: ResolvedTrainConfig,
    dataset: Dataset,
    stage: Stage[TrainDone],
    phase: Phase,
    warm_start: "Checkpoint | None",
    worker: LocalWorker | None,
) -> TrainDone:
    snapshot = stage.record.phases[-1].snapshot
    with _workers(job, worker) as workers:
        arguments = _arguments(job, recipe, phase, snapshot, workers.resources, warm_start is not None)
        workers.prepare(arguments)
        import_mlflow()
        workers.require_prepared()
        if warm_start is not None:
            _copy_decoder(warm_start, job.run / _WARM_START)  # The copy is whole before `run.json` names it.
        length = {"images": phase.target, "workers": job.workers, "device": job.device}
        stage.begin({**stage.record.identity, f"phase.{phase.number}": length})
        workers.begin()
        _log_plan(job, recipe, dataset, phase)
        workers.fit(job, stage, arguments)
    committed = committed_checkpoints(job.run)
    seen = int(committed[-1].name) if committed else 0
    if seen < phase.target or not metrics_path(job.run, seen).exists():
        where = "with a checkpoint" if committed else "before the first step"
        log.info("stopped at %d of %d images %s; the same command resumes", seen, phase.target, where)
        raise SystemExit(STOPPED_STATUS)
    metrics = read_record(metrics_path(job.run, seen), MetricsRecord)
    done = TrainDone(
        images_seen=seen, psnr=metrics.psnr, pca_psnr=metrics.pca_psnr, phase=phase.number, snapshot=snapshot
    )
    stage.finish(done)
    return done


@contextlib.contextmanager
def _workers(job: TrainJob, worker: LocalWorker | None) -> Iterator[Workers]:
    """What trains: a process beside this one where that is enough, else Ray Train's workers."""
    if trains_here(job):
        with worker or LocalWorker() as local:
            yield WorkerHere(local, resources_here(job))
        return
    with ray_session():
        resources = worker_resources(job)
        from pipelines.train.ray_workers import RayWorkers  # Brings Ray Train: not before a mistake is told.

        yield RayWorkers(resources)


def _arguments(
    job: TrainJob,
    recipe: ResolvedTrainConfig,
    phase: Phase,
    snapshot: str,
    resources: Mapping[str, float],
    has_warm_start: bool,
) -> WorkerArguments:
    return WorkerArguments(
        recipe=recipe,
        phase=phase,
        intervals=job.intervals,
        dataset=str(job.dataset),
        snapshot=snapshot,
        run=job.run,
        scratch=job.scratch,
        cache=job.cache,
        autocast=job.autocast,
        compile=job.compile,
        warm_start=job.run / _WARM_START if has_warm_start else None,
        threads=max(1, int(resources["CPU"])),
        gpu="GPU" in resources,
    )


def _warm_start(job: TrainJob) -> "Checkpoint | None":
    """The checkpoint of `job.warm_start` whose decoder the run starts from; the run has a copy once it has begun."""
    if job.warm_start is None:
        return None
    from glo_core.checkpoint.reader import Checkpoint

    record, copy = read_run_record(job.run), job.run / _WARM_START
    if record is not None and record.paths.get("warm_start") == str(job.warm_start) and (copy / MARK).exists():
        return Checkpoint(copy)
    return Checkpoint.latest(job.warm_start)


def _copy_decoder(checkpoint: "Checkpoint", directory: Path) -> None:
    """Copy a checkpoint's decoder, so that its run may train on, or be deleted, meanwhile."""
    if checkpoint.directory != directory:
        for name in DECODER_PARTS:
            write_bytes(directory / name, checkpoint.part(name).read_bytes())
        write_bytes(directory / MARK, (checkpoint.directory / MARK).read_bytes())  # Last: it commits the copy.


def _require_trainable(job: TrainJob, recipe: ResolvedTrainConfig, dataset: Dataset) -> None:
    """Refuse what cannot be trained, before anything records it.

    Raises:
        DatasetError: if there is no training image.
        ConfigError: if there are more workers than lanes, or decoder or loss of a training with Ray cannot be built;
            a process beside this one looks at its own.
    """
    if not dataset.num_train:
        raise DatasetError(f"{job.dataset}: has no training image; preprocess a folder that has some")
    lanes = num_lanes(dataset.config.code_shards, recipe.batch_size)
    _, most = job.fewest_and_most_workers
    if most > lanes:
        from glo_core.training.epoch_batches import too_many_workers

        raise ConfigError(too_many_workers(most, dataset.config.code_shards, recipe.batch_size))
    if not trains_here(job):
        from pipelines.train.trainable import require_buildable

        require_buildable(recipe, dataset)


def _log_plan(job: TrainJob, recipe: ResolvedTrainConfig, dataset: Dataset, phase: Phase) -> None:
    config = dataset.config
    lanes = num_lanes(config.code_shards, recipe.batch_size)
    epochs = phase.target / max(dataset.num_train, 1)
    log.info(
        f"{dataset.num_train} images of {config.resolution} px, {config.channels} channel(s); codes of "
        f"{recipe.code.dim}; batches of {recipe.batch_size}; to {phase.target:,} images seen ({epochs:.1f} epochs); "
        f"{job.workers} worker(s) on {lanes} lanes"
    )
    if not trains_here(job):  # Else its worker says so.
        from pipelines.train.trainable import decoder_in_words

        log.info("%s", decoder_in_words(recipe, dataset))
    _, most = job.fewest_and_most_workers
    overload = overload_of(world_size=most, lanes=lanes)
    if overload > 1:
        log.info(
            f"{lanes} lanes do not divide among {most} workers: the slowest carries {overload:.2f} times an even share"
        )

"""Training: which run, from what, for how long; what the workers do is in `pipelines.workers`."""

from pathlib import Path
from typing import Any

import torch

from glo_core.checkpoint.layout import DECODER_PARTS, MARK
from glo_core.checkpoint.reader import Checkpoint
from glo_core.common.errors import UserError
from glo_core.common.files import read_json, write_bytes
from glo_core.data.dataset import Dataset
from glo_core.data.lanes import num_lanes
from glo_core.data.lanes import overload as overload_of
from glo_core.decoder.build import make_decoder
from glo_core.decoder.config import Shape
from glo_core.decoder.cost import cost, num_parameters
from glo_core.losses.weighted_sum import make_loss
from glo_core.training.config import ResolvedTrainConfig
from glo_core.training.epoch_batches import too_many_workers
from glo_core.training.restore import require_decoder
from glo_core.training.schedule import Phase
from pipelines.common.ray_session import ray_session
from pipelines.common.stage import Input, Stage, identity_of, open_stage, run_id_of
from pipelines.train.config import TrainJob
from pipelines.train.phases import next_phase, resolve_recipe
from pipelines.train.progress_log import ProgressLog
from pipelines.train.ray_workers import fit, worker_resources


def run_training(job: TrainJob) -> dict[str, Any]:
    """Train, and return what `done.json` holds.

    Raises:
        UserError: if the run belongs to another dataset or recipe or is in use, there are more workers than lanes,
            the cluster is too small, or training failed for a reason that the user can mend.
    """
    dataset = Dataset.open(job.dataset)
    recipe = resolve_recipe(job, dataset)
    made_by = dataset.snapshots[-1].mlflow_run_id
    inputs = {"dataset": Input(job.dataset, dataset.root_digest, made_by)}
    warm_start = _warm_start(job)
    if warm_start is not None and job.warm_start is not None:
        require_decoder(warm_start, recipe.decoder, _shape(recipe, dataset))
        inputs["warm_start"] = Input(job.warm_start, warm_start.digest, run_id_of(job.warm_start))
    with open_stage(
        "train",
        job.run,
        root=job.run.parent,
        identity=identity_of(recipe, ResolvedTrainConfig),
        inputs=inputs,
        tracking=job,
    ) as stage:
        _check(job, recipe, dataset)
        phase, snapshot = next_phase(stage, job, dataset)
        if phase is None:
            done = stage.done or {}
            grown = dataset.digest != stage.record["phases"][-1]["snapshot"]
            print(
                f"train: {job.run} has seen {done['images_seen']} images already, nothing to do; "
                f"--images above that trains on{', also on what the dataset has got since' if grown else ''}. "
                f"{_figures(done)}",
                flush=True,
            )
            _send_rest(stage, job)
            return done
        with ray_session():
            resources = worker_resources(job)
            # Before the record says that it is there.
            decoder = _keep_decoder(warm_start, job.run / "warm_start") if warm_start is not None else None
            length = {"images": phase.target, "workers": job.workers, "device": job.device}
            stage.begin({**stage.record["identity"], f"phase.{phase.number}": length})
            _print_plan(job, recipe, dataset, phase)
            fit(job, recipe, stage, phase, snapshot, resources, decoder)
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
    progress_log, done = ProgressLog(job.run), stage.done
    if not progress_log.behind or done is None:
        return
    try:
        stage.begin(stage.record["identity"])
        progress_log.send(stage.tracker)
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


def _shape(recipe: ResolvedTrainConfig, dataset: Dataset) -> Shape:
    return Shape(recipe.code.dim, dataset.config.resolution, dataset.config.channels)


def _check(job: TrainJob, recipe: ResolvedTrainConfig, dataset: Dataset) -> None:
    """Refuse what cannot be trained, before anything records it."""
    if not dataset.num_train:
        raise UserError(f"{job.dataset}: has no training image; preprocess a folder that has some")
    try:
        make_decoder(recipe.decoder, **_shape(recipe, dataset)._asdict())
        make_loss(
            recipe.loss, recipe.pyramid, recipe.perceptual_network, dataset.config.resolution, torch.device("cpu")
        )
    except ValueError as error:
        raise UserError(f"{job.dataset}: {error}") from None
    lanes = num_lanes(dataset.config.code_shards, recipe.batch_size)
    _, most = job.fewest_and_most_workers
    if most > lanes:
        raise UserError(too_many_workers(most, dataset.config.code_shards, recipe.batch_size))


def _print_plan(job: TrainJob, recipe: ResolvedTrainConfig, dataset: Dataset, phase: Phase) -> None:
    config = dataset.config
    decoder = make_decoder(recipe.decoder, **_shape(recipe, dataset)._asdict())
    lanes = num_lanes(config.code_shards, recipe.batch_size)
    _, most = job.fewest_and_most_workers
    overload = overload_of(world_size=most, lanes=lanes)
    print(
        f"train: {dataset.num_train} images of {config.resolution} px, {config.channels} channel(s); codes of "
        f"{recipe.code.dim}; batches of {recipe.batch_size}; to {phase.target:,} images seen "
        f"({phase.target / max(dataset.num_train, 1):.1f} epochs); {job.workers} worker(s) on {lanes} lanes",
        flush=True,
    )
    print(f"train: decoder {recipe.decoder.kind} {_cost_of(recipe, decoder)}", flush=True)
    if overload > 1:
        print(
            f"train: {lanes} lanes do not divide among {most} workers: the slowest carries "
            f"{overload:.2f} times an even share",
            flush=True,
        )


def _cost_of(recipe: ResolvedTrainConfig, decoder: torch.nn.Module) -> str:
    parameters = num_parameters(decoder)
    taken = cost(decoder, recipe.code.dim)
    if taken is None:
        return f"of {parameters:,} parameters; its operations cannot be counted"
    # A step keeps weights, their gradient, Adam's two moments and their average, and what the backward pass needs.
    size = 8 if recipe.precision == "float64" else 4
    memory = size * (5 * parameters + recipe.batch_size * taken.activations)
    return (
        f"of {parameters:,} parameters, {taken.flops / 1e6:,.1f} MFLOP to decode an image; about "
        f"{memory / 2**20:,.0f} MiB for a step of {recipe.batch_size} images"
    )

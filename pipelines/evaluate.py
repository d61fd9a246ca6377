"""How good a run is: on its training images, and on held-out ones after inversion; PCA beside both.

checkpoint, dataset, the PCA that training saved -> a Ray task per group of code shards: quality, regression
-> a Ray task per group of held-out images: their codes, quality -> a table, a grid, the codes

Each task writes the parts that it has measured, so that an evaluation that was killed goes on from there.
"""

import dataclasses
import functools
import itertools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glo_core.checkpoint.layout import metrics_path
from glo_core.checkpoint.reader import Checkpoint
from glo_core.common.digests import digest
from glo_core.common.files import atomic_write
from glo_core.common.runtime import SingleProcess
from glo_core.data.dataset import Dataset
from glo_core.evaluation.config import InvertConfig
from glo_core.evaluation.inversion import images_at_once
from glo_core.evaluation.metrics import ReconstructionSums
from glo_core.sampling.image_grid import grid, in_rows
from pipelines.common.followup import FollowUp, newest_checkpoint, open_dataset, shard_groups
from pipelines.common.ray_session import num_cpus, task_results
from pipelines.common.records import EvaluateDone, Quality, SplitQuality
from pipelines.common.stage import Stage
from pipelines.config import EvaluateConfig, EvaluateJob
from pipelines.evaluate_tasks import (
    EvaluationInputs,
    HeldOutRows,
    TrainSums,
    count_held_out,
    fit_pca,
    held_out_pairs,
    held_out_rows,
    invert_held_out,
    measure_train,
    merge_held_out,
)

EVALUATE = FollowUp("evaluate", folder="evaluation", config_type=EvaluateConfig, done_type=EvaluateDone)
log = logging.getLogger("glo.evaluate")

_SHOWN = 32
"""Held-out images in the grid"""


class Sums(NamedTuple):
    """Sums over the images of a split."""

    glo: ReconstructionSums
    pca: ReconstructionSums


def evaluate(job: EvaluateJob) -> EvaluateDone:
    """Measure a run's newest checkpoint, print a table, and return what `done.json` holds.

    Raises:
        UserError: if the run has no checkpoint, or its dataset is nowhere.
    """
    checkpoint = newest_checkpoint(job.run)
    directory = EVALUATE.directory(job.run, checkpoint)

    def prepare(stage: Stage[EvaluateDone]) -> Callable[[], EvaluateDone]:
        dataset = open_dataset(stage, job.run, checkpoint, job.dataset)
        return functools.partial(_evaluate, job, checkpoint, dataset, directory, stage)

    done = EVALUATE.run(job, job.run, checkpoint, prepare, place=job.dataset)
    for parts in directory.glob("parts-*"):
        shutil.rmtree(parts, ignore_errors=True)
    print(_table(done), flush=True)
    return done


def _evaluate(
    job: EvaluateJob, checkpoint: Checkpoint, dataset: Dataset, directory: Path, stage: Stage[EvaluateDone]
) -> EvaluateDone:
    images_seen = checkpoint.position.images_seen
    inputs = _inputs(job, checkpoint, dataset, directory)
    train = _measure_train(job, checkpoint, inputs)
    held_out = _measure_held_out(job, checkpoint, dataset, inputs, train, directory)
    if held_out is not None:
        stage.progress.picture(directory / "held_out.png", images_seen)
    done = EvaluateDone(
        images_seen=images_seen,
        train=_split_quality(Sums(train.glo, train.pca)),
        held_out=_split_quality(held_out) if held_out is not None else None,
    )
    stage.progress.metrics(_as_metrics(done), images_seen)
    log.info("results in %s", directory)
    return done


def _inputs(job: EvaluateJob, checkpoint: Checkpoint, dataset: Dataset, directory: Path) -> EvaluationInputs:
    """What the tasks open, with both PCAs fitted."""
    # Parts hold sums over the images that the dataset has now: after a removal they are measured anew.
    parts = directory / f"parts-{digest(dataset.removed.astype('<i8').tobytes()).hex()[:8]}"
    parts.mkdir(parents=True, exist_ok=True)
    # A phase that reached its target has saved the first; a run that began with PCA has saved the second.
    at_end = metrics_path(job.run, checkpoint.position.images_seen).with_suffix(".safetensors")
    at_start = job.run / "pca_init.safetensors"
    inputs = EvaluationInputs(
        checkpoint=str(checkpoint.directory),
        dataset=str(dataset.path),
        decoder_kind=job.decoder_kind,
        parts=parts,
        pca=at_end if at_end.exists() else parts / "pca.safetensors",
        init=at_start if at_start.exists() else parts / "pca_init.safetensors",
    )
    if not (inputs.pca.exists() and inputs.init.exists()):
        list(task_results([fit_pca.remote(inputs)]))
    return inputs


def _measure_train(job: EvaluateJob, checkpoint: Checkpoint, inputs: EvaluationInputs) -> TrainSums:
    shards = range(checkpoint.code_shards)
    list(task_results([measure_train.remote(inputs, group, job.seed) for group in shard_groups(len(shards))]))
    parts = (TrainSums.load(inputs.train_part(shard), checkpoint.code_dim) for shard in shards)
    return functools.reduce(TrainSums.merge, parts)


def _measure_held_out(
    job: EvaluateJob,
    checkpoint: Checkpoint,
    dataset: Dataset,
    inputs: EvaluationInputs,
    train: TrainSums,
    directory: Path,
) -> Sums | None:
    """Invert the held-out images; write their codes and the grid. None if the dataset holds no image out."""
    decoder = checkpoint.decoder(allow_kind=job.decoder_kind)
    parts = _held_out_parts(dataset, inputs, job.held_out, images_at_once(decoder, checkpoint.code_dim))
    if not parts:
        log.info("the dataset holds no image out; jobs/preprocess.py --holdout 0.1 makes one that does")
        return None
    weights = train.regression.solve(SingleProcess())
    config = InvertConfig(**{name: getattr(job, name) for name in InvertConfig.__dataclass_fields__})
    tasks = [invert_held_out.remote(inputs, group, weights, config) for group in _groups(parts)]
    list(task_results(tasks))
    sums = Sums(*merge_held_out(inputs, len(parts), directory / "held_out.parquet"))
    # The parts that hold the first images
    before = itertools.accumulate((part.num_images for part in parts), initial=0)
    shown = [part for part, start in zip(parts, before, strict=False) if start < _SHOWN]
    pairs = next(task_results([held_out_pairs.remote(inputs, shown, _SHOWN)]))
    with atomic_write(directory / "held_out.png") as temporary:
        # Held-out image, its reconstruction, the next image, ... in each row
        grid(in_rows(pairs, min(16, len(pairs)))).save(temporary, format="PNG")
    return sums


def _held_out_parts(dataset: Dataset, inputs: EvaluationInputs, limit: int | None, size: int) -> list[HeldOutRows]:
    """The held-out images in parts of `size` rows: the same ones however many CPUs there are."""
    blocks = [path.name for path in dataset.block_paths()]
    groups = [blocks[first : first + 64] for first in range(0, len(blocks), 64)]
    counts = task_results([count_held_out.remote(inputs, group) for group in groups])
    return held_out_rows(blocks, [count for group in counts for count in group], limit, size)


def _groups(parts: list[HeldOutRows]) -> list[list[HeldOutRows]]:
    """`parts` by task."""
    # Each task opens the checkpoint once: not one task for each part.
    count = min(2 * max(1, int(num_cpus())), len(parts))
    return [[parts[i] for i in group] for group in np.array_split(np.arange(len(parts)), count)]


def _split_quality(sums: Sums) -> SplitQuality:
    glo, pca = (Quality(images=part.images, **part.as_metrics()) for part in sums)
    return SplitQuality(glo=glo, pca=pca)


def _as_metrics(done: EvaluateDone) -> dict[str, float]:
    """Metrics for MLflow, such as `held_out_glo_psnr`."""
    splits = {"train": done.train, "held_out": done.held_out}
    return {
        f"{split}_{method}_{name}": value
        for split, quality in splits.items()
        if quality is not None
        for method, values in dataclasses.asdict(quality).items()
        for name, value in values.items()
    }


def _table(done: EvaluateDone) -> str:
    lines = [f"{'':>10}  {'images':>8}  {'PSNR':>9}  {'PCA':>9}  {'SSIM':>6}  {'PCA':>6}  {'MSE':>8}  {'PCA':>8}"]
    for name, quality in (("training", done.train), ("held out", done.held_out)):
        if quality is not None:
            glo, pca = quality.glo, quality.pca
            lines.append(
                f"{name:>10}  {glo.images:>8,}  {glo.psnr:>6.2f} dB  {pca.psnr:>6.2f} dB  "
                f"{glo.ssim:>6.4f}  {pca.ssim:>6.4f}  {glo.mse:>8.6f}  {pca.mse:>8.6f}"
            )
    return "\n".join(lines)

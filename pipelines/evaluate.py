"""How good a run is: on its training images, and on held-out ones after inversion; PCA beside both.

checkpoint, dataset, the PCA that training saved -> a Ray task per group of code shards: quality, regression
-> a Ray task per group of held-out images: their codes, quality -> a table, a grid, the codes
"""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image

from glo_core.checkpoint.layout import CODES_METADATA
from glo_core.checkpoint.reader import Checkpoint
from glo_core.codes.pca_init import PcaInit
from glo_core.codes.ridge import RidgeRegression
from glo_core.common.arrays import Int64Array, row_chunks
from glo_core.common.files import atomic_write
from glo_core.common.memory import keep_freed_memory
from glo_core.common.runtime import SingleProcess
from glo_core.data.dataset import BlockImages, Dataset
from glo_core.evaluation.config import InvertConfig
from glo_core.evaluation.inversion import Inverter, images_at_once
from glo_core.evaluation.metrics import ReconstructionSums, reconstruction_quality
from glo_core.evaluation.pca_baseline import PcaBaseline
from glo_core.sampling.generate import decode_codes
from glo_core.sampling.image_grid import grid, in_rows
from pipelines.common.followup import FollowUp, dataset_of, shard_groups
from pipelines.common.ray_data import ray_task
from pipelines.common.ray_session import num_cpus, task_results
from pipelines.common.records import EvaluateDone, Quality, SplitQuality
from pipelines.common.stage import Stage
from pipelines.config import EvaluateConfig, EvaluateJob

EVALUATE = FollowUp("evaluate", folder="evaluation", config_type=EvaluateConfig, done_type=EvaluateDone)
log = logging.getLogger("glo.evaluate")

_CHUNK = 256
"""Images that a task decodes at once"""
_SHOWN = 32
"""Held-out images in the grid"""


class EvaluationInputs(NamedTuple):
    """What every task opens for itself: a checkpoint, and its dataset at the checkpoint's snapshot."""

    checkpoint: str
    """Directory"""
    dataset: str
    """Directory or URI"""
    decoder_kind: str | None
    """The class that may be imported for the decoder"""

    def open(self) -> tuple[Checkpoint, Dataset]:
        """The checkpoint, and the dataset at its snapshot."""
        torch.set_num_threads(1)  # A task has one CPU.
        keep_freed_memory()
        checkpoint = Checkpoint(Path(self.checkpoint))
        return checkpoint, Dataset.open(self.dataset).at(checkpoint.snapshot)


class TrainSums(NamedTuple):
    """Sums over the training images of some code shards, or of all."""

    glo: ReconstructionSums
    pca: ReconstructionSums
    regression: RidgeRegression
    """From initial codes to learned ones"""

    def merge(self, other: "TrainSums") -> "TrainSums":
        """The sums of both."""
        return TrainSums(self.glo + other.glo, self.pca + other.pca, self.regression.merge(other.regression))


@ray_task
def training_quality(
    inputs: EvaluationInputs, pca: PcaBaseline, init: PcaInit, shards: Sequence[int], seed: int
) -> TrainSums:
    """Measure the training images of `shards` at their learned codes; regress these codes on the initial ones."""
    checkpoint, dataset = inputs.open()
    decoder, code_config = checkpoint.decoder(allow_kind=inputs.decoder_kind), checkpoint.code_config
    sums = TrainSums(ReconstructionSums(), ReconstructionSums(), RidgeRegression(checkpoint.code_dim))
    for shard in shards:
        images, codes = BlockImages(dataset, [shard]), checkpoint.shard(shard, ["image_id", "code"])
        # slots[i] is the row of image i's code among the shard's codes [n, dim].
        order = np.argsort(codes["image_id"])
        slots = order[np.searchsorted(codes["image_id"], images.ids, sorter=order)]
        learned = torch.from_numpy(codes["code"][slots])
        for rows in row_chunks(len(images.ids), _CHUNK):
            sums.regression.add(init.codes(code_config, images, rows, seed), learned[rows])
            glo, linear = reconstruction_quality(decoder, learned[rows], images.take(rows), pca)
            sums = sums._replace(glo=sums.glo + glo, pca=sums.pca + linear)
    return sums


class HeldOutSums(NamedTuple):
    """Sums over some held-out images, or over all, and the codes that inversion found."""

    ids: Int64Array
    """`[n]`, ascending"""
    codes: Any
    """float32 `[n, dim]`"""
    glo: ReconstructionSums
    pca: ReconstructionSums

    @classmethod
    def merged(cls, parts: Sequence["HeldOutSums"]) -> "HeldOutSums":
        """All `parts` in their order."""
        return cls(
            ids=np.concatenate([part.ids for part in parts]),
            codes=np.concatenate([part.codes for part in parts]),
            glo=sum((part.glo for part in parts), ReconstructionSums()),
            pca=sum((part.pca for part in parts), ReconstructionSums()),
        )


@ray_task
def held_out_quality(
    inputs: EvaluationInputs,
    pca: PcaBaseline,
    init: PcaInit,
    chunks: Sequence[Int64Array],
    weights: torch.Tensor,
    config: InvertConfig,
) -> HeldOutSums:
    """Invert the held-out images at the rows of each of `chunks`, and measure their reconstructions.

    Args:
        weights: of the regression from initial codes to learned ones.
    """
    checkpoint, dataset = inputs.open()
    images, decoder = dataset.held_out(), checkpoint.decoder(allow_kind=inputs.decoder_kind)
    shards = (checkpoint.shard(shard, ["code"])["code"] for shard in range(checkpoint.code_shards))
    learned = torch.from_numpy(next(codes for codes in shards if len(codes)))
    inverter = Inverter(decoder, checkpoint.projection, init, weights, learned, config)
    parts = []
    for rows in chunks:
        codes, _ = inverter.codes(images, rows)
        glo, linear = reconstruction_quality(decoder, codes, images.take(rows), pca)
        parts.append(HeldOutSums(images.ids[rows], codes.float().numpy(), glo, linear))
    return HeldOutSums.merged(parts)


def evaluate(job: EvaluateJob) -> EvaluateDone:
    """Measure a run's newest checkpoint, print a table, and return what `done.json` holds.

    Raises:
        UserError: if the run has no checkpoint, or its dataset is not where it was.
    """
    checkpoint = Checkpoint.latest(job.run)
    dataset = dataset_of(job.run, checkpoint)
    directory = EVALUATE.directory(job.run, checkpoint)

    def measure(stage: Stage[EvaluateDone]) -> EvaluateDone:
        images_seen = checkpoint.position.images_seen
        decoder = checkpoint.decoder(allow_kind=job.decoder_kind)
        train, held_out = _measure(job, checkpoint, dataset, decoder)
        if held_out is not None:
            _write_codes(directory / "held_out.parquet", held_out)
            with atomic_write(directory / "held_out.png") as temporary:
                _held_out_grid(decoder, dataset, held_out).save(temporary, format="PNG")
            stage.progress.picture(directory / "held_out.png", images_seen)
        done = EvaluateDone(
            images_seen=images_seen,
            train=_split_quality(train),
            held_out=_split_quality(held_out) if held_out is not None else None,
        )
        stage.progress.metrics(_as_metrics(done), images_seen)
        log.info("results in %s", directory)
        return done

    done = EVALUATE.run(job, job.run, checkpoint, measure)
    print(_table(done), flush=True)
    return done


def _measure(
    job: EvaluateJob, checkpoint: Checkpoint, dataset: Dataset, decoder: torch.nn.Module
) -> tuple[TrainSums, HeldOutSums | None]:
    """Both splits; None if the dataset holds no image out."""
    inputs = EvaluationInputs(str(checkpoint.directory), str(dataset.path), job.decoder_kind)
    pca_of_images, pca_of_codes = _pca_of_run(job.run, checkpoint, dataset)
    pca, init = ray.put(pca_of_images), ray.put(pca_of_codes)
    train_tasks = [
        training_quality.remote(inputs, pca, init, shards, job.seed) for shards in shard_groups(checkpoint.code_shards)
    ]
    train = functools.reduce(TrainSums.merge, task_results(train_tasks))
    count = len(dataset.held_out().ids)
    count = min(count, job.held_out) if job.held_out else count
    if not count:
        log.info("the dataset holds no image out; jobs/preprocess.py --holdout 0.1 makes one that does")
        return train, None
    weights = train.regression.solve(SingleProcess())
    config = InvertConfig(**{name: getattr(job, name) for name in InvertConfig.__dataclass_fields__})
    size = images_at_once(decoder, checkpoint.code_dim)
    tasks = [held_out_quality.remote(inputs, pca, init, chunks, weights, config) for chunks in _chunks(count, size)]
    return train, HeldOutSums.merged(list(task_results(tasks)))


def _pca_of_run(run: Path, checkpoint: Checkpoint, dataset: Dataset) -> tuple[PcaBaseline, PcaInit]:
    """The PCA of the training images at full resolution, and the one that initial codes come from."""
    # A phase that reached its target has saved the first; a run that began with PCA has saved the second.
    at_end = run / "metrics" / f"{checkpoint.position.images_seen}.safetensors"
    at_start = run / "pca_init.safetensors"
    dim, runtime = checkpoint.code_dim, SingleProcess()
    return (
        PcaBaseline.load(at_end) if at_end.exists() else PcaBaseline.fit(dataset.images(), dim, runtime),
        PcaInit.load(at_start) if at_start.exists() else PcaInit.fit(dataset.images(), dim, runtime),
    )


def _chunks(count: int, size: int) -> list[list[Int64Array]]:
    """The rows 0 to `count` in chunks of at most `size`, grouped by task."""
    chunks = np.array_split(np.arange(count), -(-count // size))
    # Each task opens the held-out blocks once, and fetches them where they are remote: not one task for each chunk.
    tasks = min(2 * max(1, int(num_cpus())), len(chunks))
    return [[chunks[i] for i in group] for group in np.array_split(np.arange(len(chunks)), tasks)]


def _split_quality(sums: TrainSums | HeldOutSums) -> SplitQuality:
    glo, pca = (Quality(images=part.images, **part.as_metrics()) for part in (sums.glo, sums.pca))
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


def _write_codes(path: Path, sums: HeldOutSums) -> None:
    flat = pa.array(sums.codes.reshape(-1))
    codes = pa.FixedSizeListArray.from_arrays(flat, sums.codes.shape[1])
    with atomic_write(path) as temporary:
        pq.write_table(pa.table({"image_id": sums.ids, "code": codes}, metadata=CODES_METADATA), temporary)


def _held_out_grid(decoder: torch.nn.Module, dataset: Dataset, sums: HeldOutSums) -> Image.Image:
    """Held-out image, its reconstruction, the next image, ... in each row."""
    images, count = dataset.held_out(), min(_SHOWN, len(sums.ids))
    originals = images.take(np.arange(count)).numpy()
    pairs = np.stack([originals, decode_codes(decoder, torch.from_numpy(sums.codes[:count]))], axis=1)
    # [count, 2, H, W, C] -> [2 count, H, W, C]: each image before its reconstruction.
    return grid(in_rows(pairs.reshape(-1, *originals.shape[1:]), min(16, 2 * count)))

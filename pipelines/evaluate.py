"""How good a run is: on its training images, and on held-out ones after inversion; PCA beside both.

checkpoint, dataset, the PCA that training kept -> a Ray task per group of code shards: quality, regression
-> a Ray task per some held-out images: their codes, quality -> figures, a grid, the codes
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from glo_core.checkpoint.reader import Checkpoint
from glo_core.codes.pca_init import PcaInit
from glo_core.codes.ridge import RidgeRegression
from glo_core.common.arrays import Int64Array, row_chunks
from glo_core.common.errors import UserError
from glo_core.common.files import atomic_write, read_json
from glo_core.common.memory import keep_freed_memory
from glo_core.common.runtime import SingleProcess
from glo_core.data.dataset import BlockImages, Dataset
from glo_core.decoder.cost import cost
from glo_core.evaluation.config import InvertConfig
from glo_core.evaluation.inversion import Inverter
from glo_core.evaluation.metrics import ReconstructionSums, reconstruction_quality
from glo_core.evaluation.pca_baseline import PcaBaseline
from glo_core.sampling.generate import decode_codes
from glo_core.sampling.image_grid import grid, in_rows
from pipelines.common.ray_session import ray_session
from pipelines.common.stage import Input, identity_of, open_stage, run_id_of
from pipelines.config import EvaluateConfig, EvaluateJob

_CHUNK = 256
"""Images that a task decodes at once, and inverts at most"""
_ACTIVATIONS = 1 << 27
"""Values that inverting a chunk may hold for the backward pass: half a GiB"""
_SHOWN = 32
"""Held-out images in the grid"""


class EvaluationInputs(NamedTuple):
    """What every task opens for itself: a checkpoint, and the dataset as the checkpoint knew it."""

    checkpoint: str
    dataset: str

    def open(self) -> tuple[Checkpoint, Dataset]:
        torch.set_num_threads(1)  # A task has one CPU.
        keep_freed_memory()
        checkpoint = Checkpoint(Path(self.checkpoint))
        return checkpoint, Dataset.open(self.dataset).at(checkpoint.snapshot)


class TrainSums(NamedTuple):
    """Of some code shards, or of all."""

    ours: ReconstructionSums
    pca: ReconstructionSums
    regression: RidgeRegression

    def merge(self, other: "TrainSums") -> "TrainSums":
        return TrainSums(self.ours + other.ours, self.pca + other.pca, self.regression.merge(other.regression))


@ray.remote
def training_quality(
    subject: EvaluationInputs, shards: Sequence[int], pca: PcaBaseline, start: PcaInit, seed: int
) -> TrainSums:
    """ReconstructionSums on the training images of `shards` at their learned codes, and where these came from."""
    checkpoint, dataset = subject.open()
    decoder, code = checkpoint.decoder(), checkpoint.code_config
    found = TrainSums(ReconstructionSums(), ReconstructionSums(), RidgeRegression(checkpoint.code_dim))
    for shard in shards:
        stored = checkpoint.shard(shard, ["image_id", "code"])
        images = BlockImages(dataset, [shard])
        order = np.argsort(stored["image_id"])
        learned = torch.from_numpy(stored["code"][order][np.searchsorted(stored["image_id"][order], images.ids)])
        for rows in row_chunks(len(images.ids), _CHUNK):
            found.regression.add(start.codes(code, images, rows, seed), learned[rows])
            ours, linear = reconstruction_quality(decoder, learned[rows], images.take(rows), pca)
            found = found._replace(ours=found.ours + ours, pca=found.pca + linear)
    return found


class HeldOutSums(NamedTuple):
    """Of some held-out images."""

    ids: Int64Array
    codes: Any
    """float32 `[n, dim]`"""
    ours: ReconstructionSums
    pca: ReconstructionSums

    @classmethod
    def merged(cls, parts: Sequence["HeldOutSums"]) -> "HeldOutSums":
        """All `parts` in their order."""
        ids, codes = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "codes"))
        return cls(
            ids, codes, *(sum((getattr(part, of) for part in parts), ReconstructionSums()) for of in ("ours", "pca"))
        )


@ray.remote
def held_out_quality(
    subject: EvaluationInputs,
    chunks: Sequence[Int64Array],
    pca: PcaBaseline,
    start: PcaInit,
    weights: torch.Tensor,
    config: InvertConfig,
) -> HeldOutSums:
    """Invert the held-out images at the rows of each of `chunks`, and compare."""
    checkpoint, dataset = subject.open()
    images, decoder = dataset.held_out(), checkpoint.decoder()
    learned = next(codes for shard in range(checkpoint.code_shards) if len(codes := _codes(checkpoint, shard)))
    inverter = Inverter(decoder, checkpoint.projection, start, weights, torch.from_numpy(learned), config)
    parts = []
    for rows in chunks:
        codes, _ = inverter.codes(images, rows)
        ours, linear = reconstruction_quality(decoder, codes, images.take(rows), pca)
        parts.append(HeldOutSums(images.ids[rows], codes.float().numpy(), ours, linear))
    return HeldOutSums.merged(parts)


def _codes(checkpoint: Checkpoint, shard: int) -> Any:
    return checkpoint.shard(shard, ["code"])["code"]


def evaluate(job: EvaluateJob) -> dict[str, Any]:
    """Measure, and return what `done.json` holds: figures by `train` and `held_out`, each `glo` and `pca`.

    Raises:
        UserError: if the run has no checkpoint, or its dataset is not where it was.
    """
    checkpoint = Checkpoint.latest(job.run)
    images_seen = checkpoint.position.images_seen
    place = read_json(job.run / "run.json")["paths"]["dataset"]
    dataset = Dataset.open(place).at(checkpoint.snapshot)
    directory = job.run / "evaluation" / str(images_seen)
    with open_stage(
        "evaluate",
        directory,
        root=job.run.parent,
        identity=identity_of(job, EvaluateConfig),
        inputs={"checkpoint": Input(checkpoint.directory, checkpoint.digest, run_id_of(job.run))},
        tracking=job,
    ) as stage:
        if stage.done:
            print(f"evaluate: {directory} is up to date\n{_table(stage.done)}", flush=True)
            return stage.done
        stage.begin(stage.record["identity"])
        with ray_session():
            figures, unseen = _measure(job, EvaluationInputs(str(checkpoint.directory), place), checkpoint, dataset)
        if unseen is not None:
            _keep_codes(directory / "held_out.parquet", unseen)
            with atomic_write(directory / "held_out.png") as temporary:
                _picture(checkpoint, dataset, unseen).save(temporary, format="PNG")
            stage.tracker.image(directory / "held_out.png", images_seen)
        stage.tracker.metrics(
            {
                f"{side}_{of}_{name}": value
                for side, both in figures.items()
                for of, values in both.items()
                for name, value in values.items()
            },
            images_seen,
        )
        stage.finish({"images_seen": images_seen, **figures})
    print(f"evaluate: {directory}\n{_table(figures)}", flush=True)
    return stage.done or {}


def _measure(
    job: EvaluateJob, subject: EvaluationInputs, checkpoint: Checkpoint, dataset: Dataset
) -> tuple[dict[str, Any], HeldOutSums | None]:
    # A training that reached its target kept the PCA of its images, one that started from it a basis for codes.
    at_end = job.run / "metrics" / f"{checkpoint.position.images_seen}.safetensors"
    at_start = job.run / "pca_init.safetensors"
    dim, alone = checkpoint.code_dim, SingleProcess()
    pca = PcaBaseline.load(at_end) if at_end.exists() else PcaBaseline.fit(dataset.images(), dim, alone)
    start = PcaInit.load(at_start) if at_start.exists() else PcaInit.fit(dataset.images(), dim, alone)
    kept_pca, kept_start = ray.put(pca), ray.put(start)
    groups = [range(first, checkpoint.code_shards, 8) for first in range(min(8, checkpoint.code_shards))]
    on_training = [training_quality.remote(subject, list(shards), kept_pca, kept_start, job.seed) for shards in groups]
    training = functools.reduce(TrainSums.merge, _results(on_training))
    figures = {"train": _figures(training.ours, training.pca)}
    count = len(dataset.held_out().ids)
    count = min(count, job.held_out) if job.held_out else count
    if not count:
        print(
            "evaluate: the dataset holds no image out; jobs/preprocess.py --holdout 0.1 makes one that does", flush=True
        )
        return figures, None
    weights = training.regression.solve(SingleProcess())
    config = InvertConfig(**{name: getattr(job, name) for name in InvertConfig.__dataclass_fields__})
    taken = cost(checkpoint.decoder(), checkpoint.code_dim)
    size = max(1, min(_CHUNK, _ACTIVATIONS // taken.activations)) if taken else _CHUNK // 4
    chunks = np.array_split(np.arange(count), -(-count // size))
    # Each task opens the held-out blocks once, and fetches them where they are remote: not one task for each chunk.
    cpus = max(1, int(ray.cluster_resources().get("CPU", 0)))  # None yet, where workers are still to start.
    tasks = min(2 * cpus, len(chunks))
    of_tasks = [[chunks[number] for number in some] for some in np.array_split(np.arange(len(chunks)), tasks)]
    parts = _results(
        [held_out_quality.remote(subject, some, kept_pca, kept_start, weights, config) for some in of_tasks]
    )
    unseen = HeldOutSums.merged(list(parts))
    return {**figures, "held_out": _figures(unseen.ours, unseen.pca)}, unseen


def _results(tasks: Sequence[Any]) -> Iterator[Any]:
    for task in tasks:
        try:
            yield ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None


def _figures(ours: ReconstructionSums, linear: ReconstructionSums) -> dict[str, Any]:
    return {"glo": {"images": ours.images, **ours.as_metrics()}, "pca": linear.as_metrics()}


def _table(figures: dict[str, Any]) -> str:
    lines = [f"{'':>10}  {'images':>8}  {'PSNR':>9}  {'PCA':>9}  {'SSIM':>6}  {'PCA':>6}  {'MSE':>8}  {'PCA':>8}"]
    for side, name in (("train", "training"), ("held_out", "held out")):
        if side in figures:
            glo, linear = figures[side]["glo"], figures[side]["pca"]
            lines.append(
                f"{name:>10}  {glo['images']:>8,}  {glo['psnr']:>6.2f} dB  {linear['psnr']:>6.2f} dB  "
                f"{glo['ssim']:>6.4f}  {linear['ssim']:>6.4f}  {glo['mse']:>8.6f}  {linear['mse']:>8.6f}"
            )
    return "\n".join(lines)


def _keep_codes(path: Path, unseen: HeldOutSums) -> None:
    flat = pa.array(unseen.codes.reshape(-1))
    codes = pa.FixedSizeListArray.from_arrays(flat, unseen.codes.shape[1])
    with atomic_write(path) as temporary:
        pq.write_table(pa.table({"image_id": unseen.ids, "code": codes}), temporary)


def _picture(checkpoint: Checkpoint, dataset: Dataset, unseen: HeldOutSums) -> Any:
    """Held-out image, its reconstruction, the next image, ... in each row."""
    images, count = dataset.held_out(), min(_SHOWN, len(unseen.ids))
    originals = images.take(np.arange(count)).numpy()
    pairs = np.stack([originals, decode_codes(checkpoint.decoder(), torch.from_numpy(unseen.codes[:count]))], axis=1)
    return grid(in_rows(pairs.reshape(-1, *originals.shape[1:]), min(16, 2 * count)))

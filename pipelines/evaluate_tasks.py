"""What the Ray tasks of an evaluation do: each measures some images and writes its parts, which a resumed one skips.

The driver holds no list of ids and no table of codes: training images are measured by code shard, held-out ones by
rows that a task finds in the blocks, and only sums come back.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from glo_core.checkpoint.layout import CODES_METADATA
from glo_core.checkpoint.reader import Checkpoint
from glo_core.codes.pca_init import PcaInit
from glo_core.codes.ridge import RidgeRegression
from glo_core.common.arrays import Int64Array, UInt8Array, row_chunks
from glo_core.common.arrow_files import read_parquet
from glo_core.common.errors import CheckpointError
from glo_core.common.files import atomic_write, write_bytes
from glo_core.common.memory import keep_freed_memory
from glo_core.common.runtime import SingleProcess
from glo_core.common.tensor_files import read_tensors, tensor_bytes
from glo_core.data.block_images import BlockImages
from glo_core.data.dataset import Dataset
from glo_core.evaluation.config import InvertConfig
from glo_core.evaluation.inversion import Inverter
from glo_core.evaluation.metrics import ReconstructionSums, reconstruction_quality
from glo_core.evaluation.pca_baseline import PcaBaseline
from glo_core.sampling.generate import decode_codes
from pipelines.common.ray_data import ray_task

_CHUNK = 256
"""Images that a task decodes at once"""
_SUMS = "glo_sums"
"""Of a part's schema: images, squared errors and similarities of the decoder, then of PCA, as JSON"""


class EvaluationInputs(NamedTuple):
    """What every task opens for itself."""

    checkpoint: str
    """Directory"""
    dataset: str
    """Directory or URI"""
    decoder_kind: str | None
    """The class that may be imported for the decoder"""
    parts: Path
    """Directory of the parts"""
    pca: Path
    """File of the PCA of the training images at full resolution"""
    init: Path
    """File of the PCA that initial codes come from"""

    def open(self) -> tuple[Checkpoint, Dataset]:
        """The checkpoint, and the dataset at its snapshot."""
        torch.set_num_threads(1)  # A task has one CPU.
        keep_freed_memory()
        checkpoint = Checkpoint(Path(self.checkpoint))
        return checkpoint, Dataset.open(self.dataset).at(checkpoint.snapshot)

    def train_part(self, shard: int) -> Path:
        """The file of code shard `shard`."""
        return self.parts / f"train-{shard:03d}.safetensors"

    def held_out_part(self, number: int) -> Path:
        """The file of part `number` of the held-out images."""
        return self.parts / f"held_out-{number:06d}.parquet"


@ray_task
def fit_pca(inputs: EvaluationInputs) -> None:
    """Fit the PCAs that training has not saved, to all training images, and write them."""
    checkpoint, dataset = inputs.open()
    images, runtime = dataset.images(), SingleProcess()
    if not inputs.pca.exists():
        PcaBaseline.fit(images, checkpoint.code_dim, runtime).save(inputs.pca)
    if not inputs.init.exists():
        write_bytes(inputs.init, PcaInit.fit(images, checkpoint.code_dim, runtime).to_bytes())


# ---------------------------------------------------------------- training images


class TrainSums(NamedTuple):
    """Sums over the training images of some code shards, or of all."""

    glo: ReconstructionSums
    pca: ReconstructionSums
    regression: RidgeRegression
    """From initial codes to learned ones"""

    def merge(self, other: "TrainSums") -> "TrainSums":
        """The sums of both."""
        return TrainSums(self.glo + other.glo, self.pca + other.pca, self.regression.merge(other.regression))

    def save(self, path: Path) -> None:
        """Write the sums as a safetensors file."""
        sums = torch.tensor([_as_list(self.glo), _as_list(self.pca)], dtype=torch.float64)
        write_bytes(path, tensor_bytes({"sums": sums, "regression": self.regression.products}))

    @classmethod
    def load(cls, path: Path, dim: int) -> "TrainSums":
        """Read what `save` wrote.

        Raises:
            CheckpointError: if the file is missing or not whole.
        """
        tensors = read_tensors(path, ("sums", "regression"))
        regression = RidgeRegression(dim)
        regression.products = tensors["regression"]
        glo, pca = tensors["sums"].tolist()
        return cls(_from_list(glo), _from_list(pca), regression)


@ray_task
def measure_train(inputs: EvaluationInputs, shards: Sequence[int], seed: int) -> None:
    """Measure the training images of `shards` at their learned codes; regress these codes on the initial ones."""
    checkpoint, dataset = inputs.open()
    shards = [shard for shard in shards if not _is_whole_train_part(inputs.train_part(shard), checkpoint.code_dim)]
    if not shards:
        return
    decoder, pca, init = checkpoint.decoder(allow_kind=inputs.decoder_kind), *_pcas(inputs)
    for shard in shards:
        images, codes = BlockImages(dataset, [shard]), checkpoint.shard(shard, ["image_id", "code"])
        # slots[i] is the row of image i's code among the shard's codes [n, dim].
        order = np.argsort(codes["image_id"])
        slots = order[np.searchsorted(codes["image_id"], images.ids, sorter=order)]
        learned = torch.from_numpy(codes["code"][slots])
        sums = TrainSums(ReconstructionSums(), ReconstructionSums(), RidgeRegression(checkpoint.code_dim))
        for rows in row_chunks(len(images.ids), _CHUNK):
            sums.regression.add(init.codes(checkpoint.code_config, images, rows, seed), learned[rows])
            glo, linear = reconstruction_quality(decoder, learned[rows], images.take(rows), pca)
            sums = sums._replace(glo=sums.glo + glo, pca=sums.pca + linear)
        sums.save(inputs.train_part(shard))


# ---------------------------------------------------------------- held-out images


class HeldOutRows(NamedTuple):
    """A part of the held-out images: rows in the order of ids, and the blocks that have them."""

    number: int
    """Of the part, from 0 on"""
    first: int
    """The first row among those of `blocks`"""
    num_images: int
    blocks: tuple[str, ...]
    """Names of the blocks"""


def held_out_rows(names: Sequence[str], counts: Sequence[int], limit: int | None, size: int) -> list[HeldOutRows]:
    """The held-out images, those of the lowest ids if there is a `limit`, in parts of `size` rows.

    Args:
        names: of all blocks, in the order of ids.
        counts: held-out images of each block.
    """
    ends = np.cumsum(counts, dtype=np.int64) if len(counts) else np.zeros(0, np.int64)
    total = int(ends[-1]) if len(ends) else 0
    total = total if limit is None else min(total, limit)
    parts = []
    for number, first in enumerate(range(0, total, size)):
        last = min(first + size, total)
        # Block b has the rows ends[b - 1] to ends[b] - 1.
        begin, end = int(np.searchsorted(ends, first, "right")), int(np.searchsorted(ends, last, "left"))
        before = int(ends[begin - 1]) if begin else 0
        parts.append(HeldOutRows(number, first - before, last - first, tuple(names[begin : end + 1])))
    return parts


@ray_task
def count_held_out(inputs: EvaluationInputs, blocks: Sequence[str]) -> list[int]:
    """How many held-out images each of `blocks` has."""
    _, dataset = inputs.open()
    return [len(dataset.held_out([block]).ids) for block in blocks]


@ray_task
def invert_held_out(
    inputs: EvaluationInputs, parts: Sequence[HeldOutRows], weights: torch.Tensor, config: InvertConfig
) -> None:
    """Invert the held-out images of `parts`, measure their reconstructions, and write codes and sums of each part.

    Args:
        weights: of the regression from initial codes to learned ones.
    """
    parts = [part for part in parts if not _is_whole_held_out_part(inputs.held_out_part(part.number))]
    if not parts:
        return
    checkpoint, dataset = inputs.open()
    decoder, pca, init = checkpoint.decoder(allow_kind=inputs.decoder_kind), *_pcas(inputs)
    shards = (checkpoint.shard(shard, ["code"])["code"] for shard in range(checkpoint.code_shards))
    learned = torch.from_numpy(next(codes for codes in shards if len(codes)))
    inverter = Inverter(decoder, checkpoint.projection, init, weights, learned, config)
    for part in parts:
        images = dataset.held_out(part.blocks)
        rows = np.arange(part.first, part.first + part.num_images)
        codes, _ = inverter.codes(images, rows)
        glo, linear = reconstruction_quality(decoder, codes, images.take(rows), pca)
        _write_held_out(inputs.held_out_part(part.number), images.ids[rows], codes.float().numpy(), glo, linear)


def _write_held_out(path: Path, ids: Int64Array, codes: Any, glo: ReconstructionSums, pca: ReconstructionSums) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), codes.shape[1])
    metadata = {**CODES_METADATA, _SUMS: json.dumps([_as_list(glo), _as_list(pca)])}
    with atomic_write(path) as temporary:
        pq.write_table(pa.table({"image_id": ids, "code": column}, metadata=metadata), temporary)


def merge_held_out(inputs: EvaluationInputs, count: int, target: Path) -> tuple[ReconstructionSums, ReconstructionSums]:
    """Write the codes of all `count` parts to the file `target`, one part in memory at a time, and add their sums."""
    glo, pca = ReconstructionSums(), ReconstructionSums()
    with atomic_write(target) as temporary:
        writer = None
        for number in range(count):
            table = read_parquet(inputs.held_out_part(number), ["image_id", "code"], CheckpointError)
            part_glo, part_pca = json.loads(table.schema.metadata[_SUMS.encode()])
            glo, pca = glo + _from_list(part_glo), pca + _from_list(part_pca)
            table = table.replace_schema_metadata(CODES_METADATA)
            writer = writer or pq.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
    return glo, pca


@ray_task
def held_out_pairs(inputs: EvaluationInputs, parts: Sequence[HeldOutRows], count: int) -> UInt8Array:
    """The first `count` held-out images of `parts`, each before its reconstruction, uint8 `[2 n, H, W, C]`."""
    checkpoint, dataset = inputs.open()
    decoder = checkpoint.decoder(allow_kind=inputs.decoder_kind)
    originals, codes = [], []
    for part in parts:
        rows = np.arange(part.first, part.first + part.num_images)
        originals.append(dataset.held_out(part.blocks).take(rows).numpy())
        column = read_parquet(inputs.held_out_part(part.number), ["code"], CheckpointError).column("code")
        flat = column.combine_chunks().flatten().to_numpy()
        codes.append(flat.reshape(part.num_images, -1))
    images = np.concatenate(originals)[:count]
    decoded = decode_codes(decoder, torch.from_numpy(np.concatenate(codes)[:count]))
    # [n, 2, H, W, C] -> [2 n, H, W, C]
    return np.stack([images, decoded], axis=1).reshape(-1, *images.shape[1:])


# ---------------------------------------------------------------- parts of both


def _pcas(inputs: EvaluationInputs) -> tuple[PcaBaseline, PcaInit]:
    return PcaBaseline.load(inputs.pca), PcaInit.load(inputs.init)


def _is_whole_train_part(path: Path, dim: int) -> bool:
    """Whether the part is there and can be read; one that is damaged is measured anew."""
    try:
        TrainSums.load(path, dim)
    except CheckpointError:
        return False
    return True


def _is_whole_held_out_part(path: Path) -> bool:
    """Whether the part is there and can be read; one that is damaged is measured anew."""
    try:
        return _SUMS.encode() in read_parquet(path, ["image_id", "code"], CheckpointError).schema.metadata
    except CheckpointError:
        return False


def _as_list(sums: ReconstructionSums) -> list[float]:
    return [float(sums.images), sums.squared, sums.similarity]


def _from_list(values: Sequence[float]) -> ReconstructionSums:
    images, squared, similarity = values
    return ReconstructionSums(int(images), squared, similarity)

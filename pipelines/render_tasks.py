"""What the Ray tasks of rendering do: each looks at some code shards, one after the other, and returns a few images.

The driver holds no table of codes and no list of ids: what is chosen among all images is chosen by hash in each
shard, and merged.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glo_core.checkpoint.reader import Checkpoint
from glo_core.common.arrays import Int64Array, UInt8Array, UInt64Array
from glo_core.common.counter_rng import key64, mix64
from glo_core.data.block_images import BlockImages
from glo_core.data.dataset import Dataset
from glo_core.evaluation.neighbors import Neighbors, nearest, take_ids
from pipelines.common.followup import shard_groups
from pipelines.common.ray_data import ray_task
from pipelines.common.ray_session import task_results


class Chosen(NamedTuple):
    """Training images by ascending hash of their ids."""

    hashes: UInt64Array
    """uint64 `[n]`, no two alike"""
    ids: Int64Array
    """int64 `[n]`"""
    codes: npt.NDArray[Any]
    """`[n, dim]`"""

    def lowest(self, count: int) -> "Chosen":
        """At most `count` of the lowest hashes, in their order."""
        order = np.argsort(self.hashes)[:count]
        return Chosen(self.hashes[order], self.ids[order], self.codes[order])

    def merge(self, other: "Chosen", count: int) -> "Chosen":
        """At most `count` of the lowest hashes of both."""
        return Chosen(*(np.concatenate(pair) for pair in zip(self, other, strict=True))).lowest(count)


class DatasetAt(NamedTuple):
    """A dataset at a snapshot, which a task opens for itself."""

    place: str
    digest: str

    def open(self) -> Dataset:
        """The dataset."""
        return Dataset.open(self.place).at(self.digest)


def choose_in_shards(checkpoint: Checkpoint, dataset: Dataset, shards: Sequence[int], seed: int, count: int) -> Chosen:
    """The `count` images of `shards` with the lowest hashes of `seed` and id that the dataset still has."""
    dtype = np.dtype(checkpoint.record.precision)
    chosen = Chosen(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty((0, checkpoint.code_dim), dtype))
    for shard in shards:
        columns = checkpoint.shard(shard, ["image_id", "code"])
        # The dataset may have removed images since.
        present = np.isin(columns["image_id"], BlockImages(dataset, [shard]).ids)
        ids, codes = columns["image_id"][present], columns["code"][present]
        hashes = mix64(key64("render", seed), ids)
        chosen = chosen.merge(Chosen(hashes, ids, codes), count)
    return chosen


@ray_task
def _choose(checkpoint: str, dataset: DatasetAt, shards: Sequence[int], seed: int, count: int) -> Chosen:
    return choose_in_shards(Checkpoint(Path(checkpoint)), dataset.open(), shards, seed, count)


def choose(checkpoint: Checkpoint, dataset: DatasetAt, seed: int, count: int) -> Chosen:
    """The `count` training images with the lowest hashes of `seed` and id: the same ones in a later checkpoint."""
    groups = shard_groups(checkpoint.code_shards)
    tasks = [_choose.remote(str(checkpoint.directory), dataset, shards, seed, count) for shards in groups]
    return functools.reduce(functools.partial(Chosen.merge, count=count), task_results(tasks))


@ray_task
def _take(dataset: DatasetAt, ids: Int64Array) -> UInt8Array:
    opened = dataset.open()
    shards = ids % opened.config.code_shards
    side, channels = opened.config.resolution, opened.config.channels
    images = np.empty((len(ids), side, side, channels), np.uint8)
    for shard in np.unique(shards).tolist():
        images[shards == shard] = take_ids(BlockImages(opened, [shard]), ids[shards == shard])
    return images


def take(dataset: DatasetAt, ids: Int64Array) -> UInt8Array:
    """The training images of `ids` (int64 `[n]`), uint8 `[n, H, W, C]`, read by a task.

    Raises:
        UserError: if one is not among the training images.
    """
    images: UInt8Array = next(task_results([_take.remote(dataset, ids)]))
    return images


@ray_task
def _search(dataset: DatasetAt, shards: Sequence[int], queries: UInt8Array, k: int) -> Neighbors:
    opened = dataset.open()
    return functools.reduce(Neighbors.merge, (nearest(queries, BlockImages(opened, [shard]), k) for shard in shards))


def search(dataset: DatasetAt, code_shards: int, queries: UInt8Array, k: int) -> Neighbors:
    """The `k` nearest training images of each of `queries` (uint8 `[q, H, W, C]`) over the whole dataset."""
    tasks = [_search.remote(dataset, shards, queries, k) for shards in shard_groups(code_shards)]
    return functools.reduce(Neighbors.merge, task_results(tasks))

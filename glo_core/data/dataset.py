"""A dataset as of one of its snapshots: its blocks, mapped shard by shard.

A rank reads the record batches of its own shards and nothing else.
"""

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from glo_core.common.arrays import Int, Int64Array, UInt8Array
from glo_core.common.arrow_files import open_arrow
from glo_core.common.errors import DatasetError
from glo_core.common.location import Location
from glo_core.common.shapes import Tensor, UInt8
from glo_core.dataset_format.blocks import open_block
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.snapshots import Snapshot, read_dataset, read_snapshots, removed_ids


class _Batch(NamedTuple):
    """One record batch of a block: the images of one code shard, or the held-out ones."""

    ids: Int64Array
    """int64 `[n]`, ascending"""
    pixels: UInt8Array
    """uint8 `[n, H * W * C]`, a view of the mapped file"""


class BlockImages:
    """Images of a dataset's blocks, memory-mapped; see `ImageSource`.

    Of a remote dataset, the record batches of `shards` are copied to this node's temporary directory first.
    """

    def __init__(
        self,
        dataset: "Dataset",
        shards: Sequence[int],
        *,
        holdout: bool = False,
        blocks: Collection[str] | None = None,
    ) -> None:
        """Map the training images of `shards`, in that order, or the held-out images.

        Args:
            blocks: names of the blocks that are opened; None for all.

        Raises:
            DatasetError: if a block is missing or damaged.
        """
        self.shards: Sequence[int] = list(shards)
        self.code_shards = dataset.config.code_shards
        self.resolution, self.channels = dataset.config.resolution, dataset.config.channels
        self.snapshot = dataset.digest
        self._dataset = dataset
        batches: Sequence[int] = [dataset.config.code_shards] if holdout else self.shards
        paths = [path for path in dataset.block_paths() if blocks is None or path.name in blocks]
        readers = [open_block(path, dataset.config) for path in paths]
        if dataset.path.remote:
            self._scratch = tempfile.TemporaryDirectory(prefix="glo-blocks-")
            readers = [_local_copy(reader, batches, Path(self._scratch.name)) for reader in readers]
            batches = range(len(batches))
        self._batches = [_read_batch(reader, index) for index in batches for reader in readers]
        # Axis [row of all these batches]: the batch of each row, its offset in the batch, and its image id.
        part = np.repeat(np.arange(len(self._batches)), [len(batch.ids) for batch in self._batches])
        offset = np.concatenate([np.arange(len(batch.ids)) for batch in self._batches] or [np.empty(0, np.int64)])
        ids = np.concatenate([batch.ids for batch in self._batches] or [np.empty(0, np.int64)])
        mask = ~np.isin(ids, dataset.removed_by_now())
        self.ids: Int64Array = ids[mask]
        """Image ids, int64 `[rows]`, shard by shard and ascending in each"""
        self._part, self._offset = part[mask], offset[mask]

    def take(self, rows: Int[Int64Array, " b"]) -> UInt8[Tensor, "b height width channels"]:
        """Copy the images at `rows` (int64 `[b]`), uint8 `[b, H, W, C]` in host memory."""
        images = np.empty((len(rows), self.resolution, self.resolution, self.channels), np.uint8)
        # Axes [image, pixel x channel]: a view of `images`, one image a row as in a block.
        flat = images.reshape(len(rows), self.resolution**2 * self.channels)
        for index, (part, offset) in enumerate(zip(self._part[rows], self._offset[rows], strict=True)):
            flat[index] = self._batches[part].pixels[offset]
        return torch.from_numpy(images)

    def select(self, shards: Sequence[int]) -> "BlockImages":
        """The training images of `shards`."""
        return BlockImages(self._dataset, shards)


def _local_copy(reader: Any, indices: Sequence[int], scratch: Path) -> Any:
    """A reader of a mapped local file that holds the record batches `indices` of `reader`, in that order."""
    with tempfile.NamedTemporaryFile(dir=scratch) as file:  # Its name goes; the mapping keeps it.
        with pa.OSFile(file.name, "wb") as sink, pa.ipc.new_file(sink, reader.schema) as copy:
            for index in indices:
                copy.write_batch(reader.get_batch(index))
        return open_arrow(Path(file.name), DatasetError)


def _read_batch(reader: Any, index: int) -> _Batch:
    """The record batch `index` of a block, without a copy."""
    batch = reader.get_batch(index)
    images, width = batch.column("image"), batch.schema.field("image").type.byte_width
    pixels = np.frombuffer(images.buffers()[1], np.uint8, count=len(images) * width, offset=images.offset * width)
    return _Batch(batch.column("image_id").to_numpy(), pixels.reshape(len(images), width))


class Dataset:
    """A dataset as of one of its snapshots, without the images that a later snapshot removed."""

    def __init__(
        self, path: Location, config: ResolvedDatasetConfig, snapshots: Sequence[Snapshot], removed: Int64Array
    ) -> None:
        """Take the snapshots up to the one that is meant, oldest first, and all ids that any snapshot removed."""
        self.path, self.config, self.snapshots, self.removed = path, config, snapshots, removed

    @classmethod
    def open(cls, place: str | Path | Location) -> "Dataset":
        """Open the newest snapshot of the dataset at `place`, a directory or a URI.

        Raises:
            DatasetError: if there is no dataset, it holds no snapshot, a snapshot is missing, or a record is damaged or
                of another format or version.
        """
        path = Location(place)
        config, snapshots = read_dataset(path)
        return cls(path, config, snapshots, removed_ids(snapshots))

    @property
    def digest(self) -> str:
        """The digest of the snapshot, in hex, which identifies what the dataset holds."""
        return self.snapshots[-1].digest

    @property
    def root_digest(self) -> str:
        """The digest of the first snapshot: the same for a dataset and all that is appended to it."""
        return self.snapshots[0].digest

    @property
    def num_train(self) -> int:
        """Training images by the counts of the snapshots; images that a later snapshot removed count too."""
        return sum(snapshot.counts.train for snapshot in self.snapshots)

    def at(self, digest: str) -> "Dataset":
        """The dataset as it was at an older snapshot, without the images that were removed since.

        Raises:
            DatasetError: if `digest` is not in the chain.
        """
        for number, snapshot in enumerate(self.snapshots, start=1):
            if snapshot.digest == digest:
                return Dataset(self.path, self.config, self.snapshots[:number], self.removed)
        chain = ", ".join(snapshot.digest[:12] for snapshot in self.snapshots)
        raise DatasetError(f"{self.path}: snapshot {digest[:12]} is not of this dataset (it has {chain})")

    def removed_by_now(self) -> Int64Array:
        """Every id that is removed by now, also by snapshots that came after this dataset was opened, int64 `[m]`."""
        return removed_ids(read_snapshots(self.path))

    def removed_since(self) -> Int64Array:
        """Ids that snapshots after this one have removed by now, int64 `[m]`, ascending.

        Late duplicates are left out: no reader ever saw them.
        """
        later = read_snapshots(self.path)[len(self.snapshots) :]
        ids = {image_id for snapshot in later for image_id in snapshot.removed if image_id not in snapshot.duplicate_of}
        return np.array(sorted(ids), np.int64)

    def block_paths(self) -> list[Location]:
        """The Arrow files, in the order of ids."""
        return [self.path / "blocks" / block.name for snapshot in self.snapshots for block in snapshot.blocks]

    def images(self, shards: Sequence[int] | None = None) -> BlockImages:
        """The training images of `shards` (default: all)."""
        return BlockImages(self, range(self.config.code_shards) if shards is None else shards)

    def held_out(self, blocks: Collection[str] | None = None) -> BlockImages:
        """The held-out images of `blocks`, by name (default: all)."""
        return BlockImages(self, (), holdout=True, blocks=blocks)

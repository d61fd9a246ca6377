"""The images in the blocks of a dataset, mapped shard by shard.

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
from glo_core.common.shapes import Tensor, UInt8
from glo_core.data.dataset import Dataset
from glo_core.dataset_format.blocks import open_block


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
        dataset: Dataset,
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

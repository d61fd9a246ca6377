"""Images for training: a dataset's blocks, mapped shard by shard, or a tensor in memory.

Blocks are memory-mapped: a rank reads the record batches of its own shards and nothing else.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
import torch

from glo_core.blocks import DatasetConfig, open_block, read_config, read_snapshots
from glo_core.decode import DecodePolicy, UInt8Array
from glo_core.files import UserError
from glo_core.hashing import Int64Array
from glo_core.location import Location


class ImageSource(Protocol):
    """The images of some code shards, in the order shard by shard, ids ascending within each."""

    ids: Int64Array
    """int64 `[n]`"""
    shards: Sequence[int]
    """The shards held, in order"""
    code_shards: int
    resolution: int
    channels: int
    snapshot: str
    """Digest of what is held; part of the order of training"""

    def gather(self, rows: Int64Array) -> torch.Tensor:
        """Images at `rows` (int64 `[b]`), uint8 `[b, H, W, C]` in host memory."""
        ...

    def select(self, shards: Sequence[int]) -> "ImageSource":
        """The same source with only `shards`, in that order."""
        ...


def rows_of_shards(images: ImageSource) -> dict[int, tuple[int, int]]:
    """First row and end of each code shard that `images` holds."""
    sizes = np.bincount(images.ids % images.code_shards, minlength=images.code_shards)[list(images.shards)]
    ends = np.cumsum(sizes).tolist()
    return dict(zip(images.shards, zip([0, *ends[:-1]], ends, strict=True), strict=True)) if ends else {}


class _Batch(NamedTuple):
    ids: Int64Array
    pixels: UInt8Array
    """uint8 `[n, H * W * C]`, a view of the mapped file"""


class BlockImages:
    """Images of a dataset's blocks, memory-mapped; see `ImageSource`.

    Of a remote dataset, the record batches of `shards` are copied to this node's temporary directory first.
    """

    def __init__(self, dataset: "Dataset", shards: Sequence[int], *, holdout: bool = False) -> None:
        self.shards: Sequence[int] = list(shards)
        self.code_shards = dataset.config.code_shards
        self.resolution, self.channels = dataset.config.resolution, dataset.config.channels
        self.snapshot = dataset.digest
        self._dataset = dataset
        batches: Sequence[int] = [dataset.config.code_shards] if holdout else self.shards
        readers = [open_block(path, dataset.config) for path in dataset.block_paths()]
        if dataset.path.remote:
            self._scratch = tempfile.TemporaryDirectory(prefix="glo-blocks-")
            readers = [_local_copy(reader, batches, Path(self._scratch.name)) for reader in readers]
            batches = range(len(batches))
        self._batches = [_read_batch(reader, index) for index in batches for reader in readers]
        part = np.repeat(np.arange(len(self._batches)), [len(batch.ids) for batch in self._batches])
        offset = np.concatenate([np.arange(len(batch.ids)) for batch in self._batches] or [np.empty(0, np.int64)])
        ids = np.concatenate([batch.ids for batch in self._batches] or [np.empty(0, np.int64)])
        kept = ~np.isin(ids, dataset.removed)
        self.ids: Int64Array = ids[kept]
        self._part, self._offset = part[kept], offset[kept]

    def gather(self, rows: Int64Array) -> torch.Tensor:
        images = np.empty((len(rows), self.resolution, self.resolution, self.channels), np.uint8)
        flat = images.reshape(len(rows), -1)
        for place, (part, offset) in enumerate(zip(self._part[rows], self._offset[rows], strict=True)):
            flat[place] = self._batches[part].pixels[offset]
        return torch.from_numpy(images)

    def select(self, shards: Sequence[int]) -> "BlockImages":
        return BlockImages(self._dataset, shards)


def _local_copy(reader: Any, indices: Sequence[int], scratch: Path) -> Any:
    """A reader of a mapped local file that holds the record batches `indices` of `reader`, in that order."""
    with tempfile.NamedTemporaryFile(dir=scratch) as file:  # Its name goes; the mapping keeps it.
        with pa.OSFile(file.name, "wb") as sink, pa.ipc.new_file(sink, reader.schema) as copy:
            for index in indices:
                copy.write_batch(reader.get_batch(index))
        return pa.ipc.open_file(pa.memory_map(file.name))


def _read_batch(reader: Any, index: int) -> _Batch:
    batch = reader.get_batch(index)
    images, width = batch.column("image"), batch.schema.field("image").type.byte_width
    pixels = np.frombuffer(images.buffers()[1], np.uint8, count=len(images) * width, offset=images.offset * width)
    return _Batch(batch.column("image_id").to_numpy(), pixels.reshape(len(images), width))


class TensorImages:
    """Images in memory, for notebooks and tests; see `ImageSource`."""

    def __init__(self, images: torch.Tensor, ids: Int64Array | None = None, *, code_shards: int = 32) -> None:
        """Hold `images`, uint8 `[n, H, W, C]`, under `ids` (int64 `[n]`, unique; by default 0 to n-1).

        Raises:
            ValueError: if dtype or shape are others.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2]:
            raise ValueError(f"`images` (={images.dtype} {list(images.shape)}) must be uint8 [n, side, side, channels]")
        DecodePolicy(resolution=images.shape[1], channels=images.shape[3])  # Raises where a dataset would.
        self._all, self._all_ids = images, np.arange(len(images)) if ids is None else ids
        self.code_shards, self.resolution, self.channels = code_shards, images.shape[1], images.shape[3]
        pixels = images.contiguous().numpy()
        self.snapshot = hashlib.blake2b(self._all_ids.tobytes() + pixels.tobytes(), digest_size=16).hexdigest()
        self._hold(range(code_shards))

    def _hold(self, shards: Sequence[int]) -> None:
        self.shards: Sequence[int] = list(shards)
        by_shard = [np.flatnonzero(self._all_ids % self.code_shards == shard) for shard in shards]
        places = np.concatenate([rows[np.argsort(self._all_ids[rows])] for rows in by_shard])
        self.ids: Int64Array = self._all_ids[places]
        self._images = self._all[torch.from_numpy(places)]

    def gather(self, rows: Int64Array) -> torch.Tensor:
        return self._images[torch.from_numpy(rows)]

    def select(self, shards: Sequence[int]) -> "TensorImages":
        selected = object.__new__(TensorImages)
        selected.__dict__.update(self.__dict__)
        selected._hold(shards)
        return selected


class Dataset:
    """A dataset as of one of its snapshots."""

    def __init__(self, path: Location, config: DatasetConfig, snapshots: Sequence[dict[str, Any]]) -> None:
        self.path, self.config, self.snapshots = path, config, snapshots
        self.removed: Int64Array = np.array([i for s in snapshots for i in s["removed"]], np.int64)

    @classmethod
    def open(cls, place: str | Path | Location) -> Self:
        """Open the newest snapshot of the dataset at `place`, a directory or a URI.

        Raises:
            UserError: if there is no dataset, it holds no snapshot, or its chain is broken.
        """
        path = Location(place)
        if not (path / "dataset.json").exists():
            raise UserError(f"{path}: no dataset here (dataset.json is missing); jobs/preprocess.py makes one")
        config, snapshots = read_config(path), read_snapshots(path)
        if not snapshots:
            raise UserError(f"{path}: preprocessing has not finished; run it again, it goes on where it stopped")
        return cls(path, config, snapshots)

    @property
    def digest(self) -> str:
        return str(self.snapshots[-1]["digest"])

    @property
    def root_digest(self) -> str:
        """The digest of the first snapshot: the same for a dataset and all that is appended to it."""
        return str(self.snapshots[0]["digest"])

    @property
    def num_train(self) -> int:
        return sum(snapshot["counts"]["train"] for snapshot in self.snapshots)

    def at(self, digest: str) -> "Dataset":
        """The dataset as it was at an older snapshot.

        Raises:
            UserError: if `digest` is not in the chain.
        """
        for place, snapshot in enumerate(self.snapshots, start=1):
            if snapshot["digest"] == digest:
                return Dataset(self.path, self.config, self.snapshots[:place])
        known = ", ".join(str(snapshot["digest"])[:12] for snapshot in self.snapshots)
        raise UserError(f"{self.path}: snapshot {digest[:12]} is not of this dataset (it has {known})")

    def block_paths(self) -> list[Location]:
        return [self.path / "blocks" / block["name"] for snapshot in self.snapshots for block in snapshot["blocks"]]

    def images(self, shards: Sequence[int] | None = None) -> BlockImages:
        """The training images of `shards` (default: all)."""
        return BlockImages(self, range(self.config.code_shards) if shards is None else shards)

    def held_out(self) -> BlockImages:
        return BlockImages(self, (), holdout=True)

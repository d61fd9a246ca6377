"""The dataset on disk: `dataset.json`, Arrow blocks by code shard, and a chain of snapshots.

`docs/format.md` is the normative page. Blocks are memory-mapped: a rank reads the record batches of its own
shards and nothing else.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
import torch

from glo_core.decode import DecodePolicy, UInt8Array
from glo_core.files import FORMAT_VERSION, UserError, read_json, replacing
from glo_core.hashing import Int64Array


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(DecodePolicy):
    """What a dataset is, fixed when it is created."""

    code_shards: int = 32
    """S: image id modulo S is its code shard; a power of two"""
    seed: int = 0
    """Seed of the order in which ids are dealt, and of the holdout"""
    holdout: float = 0.0
    """Fraction of the files kept out of training, in [0, 1)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.code_shards < 1 or self.code_shards & (self.code_shards - 1):
            raise ValueError(f"`code_shards` (={self.code_shards}) must be a power of two")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"`holdout` (={self.holdout}) must be at least 0 and below 1")

    @property
    def image_bytes(self) -> int:
        return self.resolution * self.resolution * self.channels


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


class _Batch(NamedTuple):
    ids: Int64Array
    pixels: UInt8Array
    """uint8 `[n, H * W * C]`, a view of the mapped file"""


def write_block(path: Path, ids: Int64Array, pixels: UInt8Array, held_out: np.ndarray[Any, Any], shards: int) -> None:
    """Write one block: a record batch per code shard, then one for the holdout.

    Args:
        ids: int64 `[n]`, ascending.
        pixels: uint8 `[n, H, W, C]`.
        held_out: bool `[n]`.
        shards: S.
    """
    flat = np.ascontiguousarray(pixels).reshape(len(ids), math.prod(pixels.shape[1:]))
    schema = pa.schema([("image_id", pa.int64()), ("image", pa.binary(int(flat.shape[1])))])
    groups = [np.flatnonzero(~held_out & (ids % shards == shard)) for shard in range(shards)]
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as file,
    ):
        for rows in [*groups, np.flatnonzero(held_out)]:
            buffers = [None, pa.py_buffer(np.ascontiguousarray(flat[rows]))]
            images = pa.FixedSizeBinaryArray.from_buffers(schema.field("image").type, len(rows), buffers)
            file.write_batch(pa.record_batch([pa.array(ids[rows]), images], schema=schema))


def open_block(path: Path, config: DatasetConfig) -> Any:
    """Memory-map a block and check its shape. Returns a `pyarrow.RecordBatchFileReader`.

    Raises:
        UserError: if the file is missing, cut short, or of another dataset.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except FileNotFoundError:
        raise UserError(f"{path}: no such block; the dataset's manifest lists it: copy it back") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path}: not a whole Arrow file ({path.stat().st_size} bytes; {str(error).splitlines()[0]}); "
            "copy it back, or preprocess again into a new dataset"
        ) from None
    expected = pa.binary(config.image_bytes)
    if reader.num_record_batches != config.code_shards + 1 or reader.schema.field("image").type != expected:
        raise UserError(
            f"{path}: {reader.num_record_batches} record batches of {reader.schema.field('image').type}, "
            f"where this dataset has {config.code_shards + 1} of {expected}"
        )
    return reader


class BlockImages:
    """Images of a dataset's blocks, memory-mapped; see `ImageSource`."""

    def __init__(self, dataset: "Dataset", shards: Sequence[int], *, holdout: bool = False) -> None:
        self.shards: Sequence[int] = list(shards)
        self.code_shards = dataset.config.code_shards
        self.resolution, self.channels = dataset.config.resolution, dataset.config.channels
        self.snapshot = dataset.digest
        self._dataset = dataset
        batches = [dataset.config.code_shards] if holdout else self.shards
        readers = [open_block(path, dataset.config) for path in dataset.block_paths()]
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


def snapshot_digest(
    parent: str, config: DatasetConfig, ids: Int64Array, hashes: Sequence[bytes], removed: Int64Array
) -> str:
    """H(parent digest, config, content hashes, ids), in hex: the same wherever the files lie.

    Args:
        parent: digest of the snapshot before, or "" for the first.
        ids: int64 `[n]`, ascending, of the snapshot's images that are no duplicates.
        hashes: BLAKE2b-128 of each image's file, in the order of `ids`.
        removed: ids that this snapshot removes, int64.
    """
    state = hashlib.blake2b(digest_size=16)
    state.update(repr((parent, sorted(dataclasses.asdict(config).items()))).encode())
    state.update(np.ascontiguousarray(ids, "<i8").tobytes() + b"".join(hashes))
    state.update(np.ascontiguousarray(removed, "<i8").tobytes())
    return state.hexdigest()


class Dataset:
    """A dataset as of one of its snapshots."""

    def __init__(self, path: Path, config: DatasetConfig, snapshots: Sequence[dict[str, Any]]) -> None:
        self.path, self.config, self.snapshots = path, config, snapshots
        self.removed: Int64Array = np.array([i for s in snapshots for i in s["removed"]], np.int64)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the newest snapshot of the dataset at `path`.

        Raises:
            UserError: if there is no dataset, it holds no snapshot, or its chain is broken.
        """
        if not (path / "dataset.json").exists():
            raise UserError(f"{path}: no dataset here (dataset.json is missing); jobs/preprocess.py makes one")
        config = read_config(path)
        snapshots = [read_json(file) for file in sorted((path / "snapshots").glob("*.json"))]
        if not snapshots:
            raise UserError(f"{path}: preprocessing has not finished; run it again, it goes on where it stopped")
        for number, (before, after) in enumerate(zip([{"digest": ""}, *snapshots], snapshots, strict=False), start=1):
            if after["number"] != number or after["parent"] != before["digest"]:
                raise UserError(f"{path}: snapshot {number} is missing from snapshots/; copy it back")
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

    def block_paths(self) -> list[Path]:
        return [self.path / "blocks" / block["name"] for snapshot in self.snapshots for block in snapshot["blocks"]]

    def images(self, shards: Sequence[int] | None = None) -> BlockImages:
        """The training images of `shards` (default: all)."""
        return BlockImages(self, range(self.config.code_shards) if shards is None else shards)

    def held_out(self) -> BlockImages:
        return BlockImages(self, (), holdout=True)


def read_config(path: Path) -> DatasetConfig:
    record = read_json(path / "dataset.json")
    fields = {field.name for field in dataclasses.fields(DatasetConfig)}
    return DatasetConfig(**{key: value for key, value in record["config"].items() if key in fields})


def config_record(config: DatasetConfig) -> dict[str, Any]:
    """What `dataset.json` holds."""
    return {
        "format_version": FORMAT_VERSION,
        "dtype": "uint8",
        "layout": "HWC",
        "config": dataclasses.asdict(config),
    }

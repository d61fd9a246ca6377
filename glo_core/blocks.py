"""The dataset on disk: `dataset.json`, Arrow blocks by code shard, and a chain of snapshots.

`docs/format.md` is the normative page. Without PyTorch, so that a task that only decodes starts at once.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from glo_core.decode import DecodePolicy, UInt8Array
from glo_core.files import FORMAT_VERSION, UserError, digest_file, read_json, replacing
from glo_core.hashing import Int64Array
from glo_core.location import Location


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


def write_block(
    place: Path | Location, ids: Int64Array, pixels: UInt8Array, held_out: np.ndarray[Any, Any], shards: int
) -> dict[str, Any]:
    """Write one block: a record batch per code shard, then one for the holdout. Returns its `bytes` and `blake2b`.

    Args:
        ids: int64 `[n]`, ascending.
        pixels: uint8 `[n, H, W, C]`.
        held_out: bool `[n]`.
        shards: S.
    """
    flat = np.ascontiguousarray(pixels).reshape(len(ids), math.prod(pixels.shape[1:]))
    schema = pa.schema([("image_id", pa.int64()), ("image", pa.binary(int(flat.shape[1])))])
    groups = [np.flatnonzero(~held_out & (ids % shards == shard)) for shard in range(shards)]
    with replacing(place) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
            for rows in [*groups, np.flatnonzero(held_out)]:
                buffers = [None, pa.py_buffer(np.ascontiguousarray(flat[rows]))]
                images = pa.FixedSizeBinaryArray.from_buffers(schema.field("image").type, len(rows), buffers)
                file.write_batch(pa.record_batch([pa.array(ids[rows]), images], schema=schema))
        return {"bytes": temporary.stat().st_size, "blake2b": digest_file(temporary)}


def open_block(place: Path | Location, config: DatasetConfig) -> Any:
    """Map a block (a remote one: open it) and check its shape. Returns a `pyarrow.RecordBatchFileReader`.

    Raises:
        UserError: if the file is missing, cut short, or of another dataset.
    """
    path = Location(place)
    try:
        reader = pa.ipc.open_file(path.open())
    except FileNotFoundError:
        raise UserError(f"{path}: no such block; the dataset's manifest lists it: copy it back") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path}: not a whole Arrow file ({path.size()} bytes; {str(error).splitlines()[0]}); "
            "copy it back, or preprocess again into a new dataset"
        ) from None
    expected = pa.binary(config.image_bytes)
    if reader.num_record_batches != config.code_shards + 1 or reader.schema.field("image").type != expected:
        raise UserError(
            f"{path}: {reader.num_record_batches} record batches of {reader.schema.field('image').type}, "
            f"where this dataset has {config.code_shards + 1} of {expected}"
        )
    return reader


def snapshot_digest(
    parent: str, config: Mapping[str, Any], ids: Int64Array, hashes: UInt8Array, removed: Int64Array
) -> str:
    """H(parent digest, config, content hashes, ids), in hex: the same wherever the files lie.

    Args:
        parent: digest of the snapshot before, or "" for the first.
        config: as `dataset.json` records it.
        ids: int64 `[n]`, ascending, of the snapshot's images that are no duplicates.
        hashes: uint8 `[n, 16]`, BLAKE2b-128 of each image's file, in the order of `ids`.
        removed: ids that this snapshot removes, int64.
    """
    state = hashlib.blake2b(digest_size=16)
    state.update(repr((parent, sorted(config.items()))).encode())
    state.update(np.ascontiguousarray(ids, "<i8").tobytes() + np.ascontiguousarray(hashes).tobytes())
    state.update(np.ascontiguousarray(removed, "<i8").tobytes())
    return state.hexdigest()


def read_snapshots(path: Location) -> list[dict[str, Any]]:
    """The chain of snapshots, oldest first.

    Raises:
        UserError: if one is missing.
    """
    names = [name for name in (path / "snapshots").names() if name.endswith(".json") and not name.startswith(".")]
    snapshots = [read_json(path / "snapshots" / name) for name in names]
    for number, (before, after) in enumerate(zip([{"digest": ""}, *snapshots], snapshots, strict=False), start=1):
        if after["number"] != number or after["parent"] != before["digest"]:
            raise UserError(f"{path}: snapshot {number} is missing from snapshots/; copy it back")
    return snapshots


BEFORE_VERSION_2 = {"draft": False, "srgb": False, "max_pixels": 89_478_485}
"""How datasets of version 1 decode: their `dataset.json` does not say."""


def read_config(path: Location) -> DatasetConfig:
    record = read_json(path / "dataset.json")
    implied = BEFORE_VERSION_2 if record["format_version"] < 2 else {}
    fields = {field.name for field in dataclasses.fields(DatasetConfig)}
    return DatasetConfig(**{k: v for k, v in {**implied, **record["config"]}.items() if k in fields})


def config_record(config: DatasetConfig) -> dict[str, Any]:
    """What `dataset.json` holds."""
    return {
        "format_version": FORMAT_VERSION,
        "dtype": "uint8",
        "layout": "HWC",
        "config": dataclasses.asdict(config),
    }

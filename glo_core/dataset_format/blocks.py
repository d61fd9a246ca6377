"""Blocks: Arrow files of decoded images, a record batch for each code shard and one for the holdout."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from glo_core.common.arrays import BoolArray, Int64Array, UInt8Array
from glo_core.common.arrow_files import open_arrow
from glo_core.common.digests import digest_file
from glo_core.common.errors import DatasetError
from glo_core.common.files import atomic_write
from glo_core.common.location import Location
from glo_core.common.records import require_format
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.records import DatasetFile


@dataclass(frozen=True, kw_only=True)
class BlockEntry:
    """A block as the manifest and the snapshots list it."""

    name: str
    """Name of the file in `blocks/`"""
    bytes: int
    """Size of the file"""
    blake3: str
    """BLAKE3-128 of the file's bytes, in hex"""


class _BlockFormat(DatasetFile):
    """What the schema of a block says of itself; everything else is in the manifest."""

    format = "glo-block"


METADATA = {"format": _BlockFormat.format, "format_version": str(_BlockFormat.format_version)}
"""Metadata of a block's schema, as text"""


def write_block(
    place: Path | Location, ids: Int64Array, pixels: UInt8Array, held_out: BoolArray, shards: int
) -> BlockEntry:
    """Write one block: a record batch per code shard, then one for the holdout; whole or not at all.

    Args:
        ids: int64 `[n]`, ascending.
        pixels: uint8 `[n, H, W, C]`.
        held_out: bool `[n]`.
        shards: S, the number of code shards.
    """
    # [n, H, W, C] -> [n, H * W * C]
    flat = np.ascontiguousarray(pixels).reshape(len(ids), math.prod(pixels.shape[1:]))
    schema = pa.schema([("image_id", pa.int64()), ("image", pa.binary(int(flat.shape[1])))], METADATA)
    # Rows of each shard, [n_s] for s = 0 ... S - 1, ascending like the ids
    shard_rows = [np.flatnonzero(~held_out & (ids % shards == shard)) for shard in range(shards)]
    with atomic_write(place) as temporary:
        with pa.OSFile(bytes(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
            for rows in [*shard_rows, np.flatnonzero(held_out)]:
                buffers = [None, pa.py_buffer(np.ascontiguousarray(flat[rows]))]
                images = pa.FixedSizeBinaryArray.from_buffers(schema.field("image").type, len(rows), buffers)
                file.write_batch(pa.record_batch([pa.array(ids[rows]), images], schema=schema))
        return BlockEntry(name=Location(place).name, bytes=temporary.stat().st_size, blake3=digest_file(temporary))


@contextlib.contextmanager
def blanked_block(
    place: Path | Location, ids: Int64Array, config: ResolvedDatasetConfig
) -> Iterator[tuple[BlockEntry, Callable[[], None]]]:
    """Write the block at `place` anew beside it, with zeros for the pixels of the images `ids` (int64 `[n]`).

    Yields the entry of the new block, and a function that puts it into the place of the old one when the context ends
    without an error; without a call of it the old block stays.

    Raises:
        DatasetError: as of `open_block`.
    """
    reader = open_block(place, config)
    published: list[bool] = []
    with contextlib.suppress(_KeepOldError), atomic_write(place) as temporary:
        with pa.OSFile(bytes(temporary), "wb") as sink, pa.ipc.new_file(sink, reader.schema) as file:
            for index in range(reader.num_record_batches):
                file.write_batch(_blanked(reader.get_batch(index), ids))
        entry = BlockEntry(name=Location(place).name, bytes=temporary.stat().st_size, blake3=digest_file(temporary))
        yield entry, lambda: published.append(True)
        if not published:
            raise _KeepOldError


class _KeepOldError(Exception):
    """Ends an atomic write without its file."""


def _blanked(batch: Any, ids: Int64Array) -> Any:
    """A record batch with zeros for the pixels of `ids`, if it holds any of them."""
    rows = np.flatnonzero(np.isin(batch.column("image_id").to_numpy(), ids))
    if not len(rows):
        return batch
    images, kind = batch.column("image"), batch.schema.field("image").type
    width, first = kind.byte_width, images.offset * kind.byte_width
    # uint8 [rows of the batch, H * W * C]: a copy, since the file is mapped
    pixels = np.frombuffer(images.buffers()[1], np.uint8, count=len(images) * width, offset=first).copy()
    pixels.reshape(len(images), width)[rows] = 0
    blank = pa.FixedSizeBinaryArray.from_buffers(kind, len(images), [None, pa.py_buffer(pixels)])
    return pa.record_batch([batch.column("image_id"), blank], schema=batch.schema)


def open_block(place: Path | Location, config: ResolvedDatasetConfig) -> Any:
    """Map a block (a remote one: open it) and check its format and shape.

    Returns:
        A `pyarrow.RecordBatchFileReader` of S + 1 batches, with the columns image_id (int64) and image (binary of
        H * W * C bytes).

    Raises:
        DatasetError: if the file is missing, cut short, of another dataset, or of another format or version; or as of
            `open_arrow`.
    """
    path = Location(place)
    reader = open_arrow(path, DatasetError)
    require_format(_format_values(reader.schema.metadata or {}), _BlockFormat, path)
    types = {field.name: field.type for field in reader.schema}
    expected = {"image_id": pa.int64(), "image": pa.binary(config.image_bytes)}
    if reader.num_record_batches != config.code_shards + 1 or types != expected:
        raise DatasetError(
            f"{path}: {reader.num_record_batches} record batches of {_type_list(types)}, "
            f"where this dataset has {config.code_shards + 1} of {_type_list(expected)}"
        )
    return reader


def _type_list(types: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in types.items())


def _format_values(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """`format` and `format_version` of a schema, as a JSON record would hold them."""
    values: dict[str, Any] = {
        key.decode(): metadata[key].decode() for key in (b"format", b"format_version") if key in metadata
    }
    version = values.get("format_version", "")
    return values | ({"format_version": int(version)} if version.isdecimal() else {})

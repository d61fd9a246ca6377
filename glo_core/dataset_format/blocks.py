"""Blocks: Arrow files of decoded images, a record batch for each code shard and one for the holdout."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from glo_core.common.arrays import Int64Array, UInt8Array
from glo_core.common.digests import digest_file
from glo_core.common.errors import UserError
from glo_core.common.files import atomic_write
from glo_core.common.location import Location
from glo_core.dataset_format.config import ResolvedDatasetConfig


def write_block(
    place: Path | Location, ids: Int64Array, pixels: UInt8Array, held_out: np.ndarray[Any, Any], shards: int
) -> dict[str, Any]:
    """Write one block: a record batch per code shard, then one for the holdout. Returns its `bytes` and `blake3`.

    Args:
        ids: int64 `[n]`, ascending.
        pixels: uint8 `[n, H, W, C]`.
        held_out: bool `[n]`.
        shards: S.
    """
    flat = np.ascontiguousarray(pixels).reshape(len(ids), math.prod(pixels.shape[1:]))
    schema = pa.schema([("image_id", pa.int64()), ("image", pa.binary(int(flat.shape[1])))])
    groups = [np.flatnonzero(~held_out & (ids % shards == shard)) for shard in range(shards)]
    with atomic_write(place) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
            for rows in [*groups, np.flatnonzero(held_out)]:
                buffers = [None, pa.py_buffer(np.ascontiguousarray(flat[rows]))]
                images = pa.FixedSizeBinaryArray.from_buffers(schema.field("image").type, len(rows), buffers)
                file.write_batch(pa.record_batch([pa.array(ids[rows]), images], schema=schema))
        return {"bytes": temporary.stat().st_size, "blake3": digest_file(temporary)}


def open_block(place: Path | Location, config: ResolvedDatasetConfig) -> Any:
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

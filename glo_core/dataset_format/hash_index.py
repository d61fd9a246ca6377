"""128-bit hashes as columns of integers: which file is which, and which bytes are the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glo_core.common.arrays import Int64Array, UInt8Array
from glo_core.common.digests import digest

Keys = npt.NDArray[np.uint64]
"""uint64 `[n, 2]`: high half and low half of n hashes, so that they sort like their bytes"""


def file_keys(seed: int, source: str, paths: Sequence[bytes]) -> bytes:
    """BLAKE3-128 of seed, source and path, 16 bytes for each path: the order of ids, and the split."""
    prefix = f"{seed}\0{source}\0".encode()
    return b"".join([digest(prefix + path) for path in paths])


def halves(keys: bytes | UInt8Array) -> Keys:
    """Concatenated keys, 16 bytes each (or uint8 `[n, 16]`), as their big-endian halves, uint64 `[n, 2]`."""
    return np.frombuffer(keys, ">u8").astype(np.uint64).reshape(-1, 2)


def key_array(keys: bytes) -> Any:
    """Concatenated keys, 16 bytes each, as a `pyarrow.FixedSizeBinaryArray`."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys) // 16, [None, pa.py_buffer(keys)])


def key_column(column: Any) -> UInt8Array:
    """A `pyarrow.ChunkedArray` of 16-byte keys without nulls, as uint8 `[n, 16]`."""
    parts = [np.empty((0, 16), np.uint8)]
    for chunk in column.chunks:
        if len(chunk):
            flat = np.frombuffer(chunk.buffers()[1], np.uint8, count=16 * len(chunk), offset=16 * chunk.offset)
            parts.append(flat.reshape(-1, 16))
    return np.concatenate(parts)


class HashIndex:
    """Finds the row of a key among many: 24 bytes of memory for each."""

    def __init__(self, keys: Keys, *, keep_last: bool = False) -> None:
        """Index `keys`, uint64 `[n, 2]`; of equal keys the first row counts, or with `keep_last` the last."""
        # [n], by key and then by row, since lexsort is stable
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        high, low = keys[order, 0], keys[order, 1]
        # [n - 1]: whether place i + 1 holds another key than place i
        differs = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        # [n]: the last, or the first, place of each run of equal keys
        counts = (np.append(differs, True) if keep_last else np.append(True, differs))[: len(order)]
        self.high, self.low, self.rows = high[counts], low[counts], order[counts]

    def __len__(self) -> int:
        return len(self.rows)

    def look_up(self, keys: Keys) -> Int64Array:
        """Row of each of `keys` (uint64 `[q, 2]`), int64 `[q]`; -1 where there is none."""
        rows = np.full(len(keys), -1)
        # Queries that are not decided: their indices into `keys`, and the place of the index that each looks at next
        queries, places = np.arange(len(keys)), np.searchsorted(self.high, keys[:, 0])
        while len(queries):
            inside = places < len(self.high)
            queries, places = queries[inside], places[inside]
            same_high = self.high[places] == keys[queries, 0]
            queries, places = queries[same_high], places[same_high]
            equal = self.low[places] == keys[queries, 1]
            rows[queries[equal]] = self.rows[places[equal]]
            # The next place may hold another key with the same high half.
            queries, places = queries[~equal], places[~equal] + 1
        return rows

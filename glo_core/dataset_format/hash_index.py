"""128-bit hashes as columns of integers: which file is which, and which bytes are the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glo_core.common.arrays import Int64Array, UInt8Array
from glo_core.common.digests import digest

Keys = npt.NDArray[np.uint64]
"""`[n, 2]`: high half and low half of n hashes, so that they sort like their bytes"""


def file_keys(seed: int, source: str, paths: Sequence[bytes]) -> bytes:
    """BLAKE3-128 of seed, source and path, 16 bytes for each path: the order of ids, and the split."""
    prefix = f"{seed}\0{source}\0".encode()
    return b"".join([digest(prefix + path) for path in paths])


def halves(keys: bytes | UInt8Array) -> Keys:
    return np.frombuffer(keys, ">u8").astype(np.uint64).reshape(-1, 2)


def key_array(keys: bytes) -> Any:
    """Concatenated keys as an Arrow array of fixed-size binary."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys) // 16, [None, pa.py_buffer(keys)])


def key_column(column: Any) -> UInt8Array:
    """An Arrow column of 16-byte keys without nulls, as uint8 `[n, 16]`."""
    parts = [np.empty((0, 16), np.uint8)]
    for chunk in column.chunks:
        if len(chunk):
            flat = np.frombuffer(chunk.buffers()[1], np.uint8, count=16 * len(chunk), offset=16 * chunk.offset)
            parts.append(flat.reshape(-1, 16))
    return np.concatenate(parts)


class HashIndex:
    """Finds the row of a key among many: 24 bytes of memory for each."""

    def __init__(self, keys: Keys, *, keep_last: bool = False) -> None:
        """Of equal keys the first row counts, or the last."""
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        high, low = keys[order, 0], keys[order, 1]
        differs = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        kept = (np.append(differs, True) if keep_last else np.append(True, differs))[: len(order)]
        self.high, self.low, self.rows = high[kept], low[kept], order[kept]

    def __len__(self) -> int:
        return len(self.rows)

    def look_up(self, keys: Keys) -> Int64Array:
        """Row of each key (int64 `[n]`), or -1."""
        found = np.full(len(keys), -1)
        requested, places = np.arange(len(keys)), np.searchsorted(self.high, keys[:, 0])
        while len(requested):
            inside = places < len(self.high)
            requested, places = requested[inside], places[inside]
            alike = self.high[places] == keys[requested, 0]
            requested, places = requested[alike], places[alike]
            equal = self.low[places] == keys[requested, 1]
            found[requested[equal]] = self.rows[places[equal]]
            requested, places = requested[~equal], places[~equal] + 1  # Two keys with the same high half.
        return found

"""NumPy array types, and rows cut into chunks."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def row_chunks(count: int, size: int) -> Iterator[Int64Array]:
    """The rows 0 to `count` - 1, `size` at a time, int64 `[<= size]`."""
    for first in range(0, count, size):
        yield np.arange(first, min(first + size, count), dtype=np.int64)

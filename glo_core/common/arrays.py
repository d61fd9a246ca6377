"""Types of NumPy arrays and names of their axes, and rows cut into chunks.

`Int[Int64Array, "lanes rows"]` is an int64 array with the axes lanes and rows. An axis that stands twice in one
signature has the same length both times. The tests check every annotated signature when it is called (jaxtyping and
beartype, `tests/conftest.py`). Elsewhere the annotations are for readers alone: jaxtyping is no dependency of the core.
`glo_core.common.shapes` has the same for tensors.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Integer, Shaped, UInt, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, Integer, Shaped, UInt, UInt8
    except ImportError:

        class _Unchecked:
            """Stands in for a type of jaxtyping: `Float[Tensor, "b dim"]` is then `Tensor`."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Int = Integer = Shaped = UInt = UInt8 = _Unchecked

__all__ = [
    "Bool",
    "BoolArray",
    "Float",
    "Float64Array",
    "Int",
    "Int64Array",
    "Integer",
    "Shaped",
    "UInt",
    "UInt8",
    "UInt8Array",
    "UInt64Array",
    "row_chunks",
]

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def row_chunks(count: int, size: int) -> Iterator[Int[Int64Array, " rows"]]:
    """The rows 0 to `count` - 1 in order, in chunks of `size` rows, the last one of what is left. int64 `[<= size]`."""
    for first in range(0, count, size):
        yield np.arange(first, min(first + size, count), dtype=np.int64)

"""Counter-based random numbers: pure functions of a key and an id, the same on every machine and version.

Orders and random codes must not depend on who draws them, so nothing here holds a state.
"""

import hashlib

import numpy as np

from glo_core.common.arrays import Float, Float64Array, Int, Int64Array, UInt, UInt64Array
from glo_core.common.digests import canonical_json


def key64(*parts: int | np.integer | str) -> int:
    """A 64-bit key from `parts`: BLAKE2b-64 of their canonical JSON list, little-endian.

    An int and a NumPy integer of the same value give the same key.

    Raises:
        TypeError: if a part is anything but an integer or a text.
    """
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, int | np.integer | str):
            raise TypeError(f"{part!r}: a part of a key must be an int or a str, not {type(part).__name__}")
    return int.from_bytes(hashlib.blake2b(canonical_json(parts), digest_size=8).digest(), "little")


def mix64(key: int, ids: Int[Int64Array, "*shape"]) -> UInt[UInt64Array, "*shape"]:
    """Hash `ids` (int64, any shape) under a 64-bit `key`, uint64 in the same shape.

    SplitMix64's finalizer (Steele et al., OOPSLA 2014), a bijection of ids: different ids have different hashes.
    """
    with np.errstate(over="ignore"):
        x = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniform(key: int, ids: Int[Int64Array, "*shape"]) -> Float[Float64Array, "*shape"]:
    """Uniform on the open interval (0, 1), float64, in the shape of `ids` (int64)."""
    return ((mix64(key, ids) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(key: int, ids: Int[Int64Array, " n"], dim: int) -> Float[Float64Array, "n {dim}"]:
    """Standard normal values (Box-Muller), float64 `[n, dim]`: row i depends on `key` and `ids[i]` alone."""
    # Axes [row, column]: a counter for each value, the row's hash plus the column.
    columns = np.arange(dim, dtype=np.int64)
    row_keys = mix64(key, ids).view(np.int64)[:, None]
    radius = np.sqrt(-2 * np.log(uniform(key64(key, "radius"), row_keys + columns)))
    return radius * np.cos(2 * np.pi * uniform(key64(key, "angle"), row_keys + columns))

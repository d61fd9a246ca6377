"""Samples of any depth brought to 8 bits.

| samples | become |
|---|---|
| integers of 1 to 7 bits | spread over 0 to 255 |
| integers of 8 bits | as they are |
| integers of 9 to 16 bits | scaled by 255 / (2^bits - 1): 16 bits are divided by 257 |
| longer integers | as they are up to 255, divided by 257 up to 65535, else scaled from the whole range of their type |
| floats | multiplied by 255 up to 1, as they are up to 255, else divided by 257 |

Negative values and NaN become 0. "Up to" speaks of the largest value of the image.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glo_core.common.arrays import UInt8Array

_WHITE = 255.0 * 65535
"""White at every scale of floats: what infinity becomes"""
LONGEST_FIXED = 16
"""Bits of the longest integers whose scale does not depend on the image's values"""


def divided_by_257(values: NDArray[Any]) -> Image.Image:
    """A gray image of 16-bit samples `[h, w]`."""
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def scale_of(dtype: np.dtype[Any], bits: int, largest: float) -> float:
    """The factor that brings samples to 0 to 255.

    Args:
        dtype: of the samples, of any size that holds `bits`.
        bits: of a sample as stored.
        largest: value of the image; it counts for floats and for integers of more than 16 bits alone.
    """
    if dtype.kind == "f":
        if largest <= 1:
            return 255.0
        return 1.0 if largest <= 255 else 1 / 257
    if bits == 8:
        return 1.0
    if bits <= LONGEST_FIXED:
        return 255 / (2**bits - 1)
    if largest <= 255:
        return 1.0
    return 1 / 257 if largest <= 65535 else 255 / (2 ** (bits - (dtype.kind == "i")) - 1)


def largest_value(values: NDArray[Any]) -> float:
    """The largest finite value of `values`, at least 0."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return float(finite.max(initial=0))


def to_bytes(values: NDArray[Any], scale: float) -> UInt8Array:
    """`values` times `scale`, rounded and kept in 0 to 255, of the same shape."""
    if scale == 1.0 and values.dtype == np.uint8:
        return values
    # float32 is exact for integers of 16 bits, and more than enough for 8 bits of floats.
    with np.errstate(invalid="ignore"):  # A signaling NaN is as good as any other.
        exact = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    scaled = np.nan_to_num(exact, nan=0.0, posinf=_WHITE, neginf=0.0) * scale
    return scaled.round().clip(0, 255).astype(np.uint8)

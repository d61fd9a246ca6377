"""The samples in the decompressed bytes of a TIFF: packed bits, bytes in either order, and predictors undone."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from glo_core.common.arrays import UInt8Array
from glo_core.dataset_format.pixels import tiff_tags as tags
from glo_core.dataset_format.pixels.tiff_layout import Layout
from glo_core.dataset_format.pixels.tiff_tags import Directory
from glo_core.dataset_format.rejection import RejectedImageError

_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_HORIZONTAL: Final = 2
_FLOATING: Final = 3


def sample_type(bits: int, kind: int, order: str) -> np.dtype[Any]:
    """The NumPy type of samples of `bits` of TIFF's sample format `kind`: the next larger one where bits are packed.

    Raises:
        RejectedImageError: `broken` where there are no such samples.
    """
    size = next((size for size in (1, 2, 4, 8) if bits <= 8 * size), 8)
    if kind == _FLOAT and bits in (16, 32, 64):
        return np.dtype(f"{order}f{size}")
    if kind in (_UNSIGNED, _UNDEFINED) or (kind == _SIGNED and bits == 8 * size):
        return np.dtype(f"{order}{'i' if kind == _SIGNED else 'u'}{size}")
    raise RejectedImageError("broken", f"samples of {bits} bits of format {kind}")


def unpack(rows: UInt8Array, layout: Layout, kind: np.dtype[Any], directory: Directory) -> NDArray[Any]:
    """The samples of rows of one plane, `[h, w, samples]`.

    Args:
        rows: bytes of the plane, `[h, row_bytes]`.
        layout: of the picture.
        kind: of its samples.
        directory: tells the predictor.
    """
    samples = 1 if layout.separate else layout.samples
    # [h, tiles, bytes] -> [h, tiles, pixels, samples] -> [h, w, samples]
    units = np.ascontiguousarray(rows).reshape(len(rows), layout.across, layout.unit_bytes)
    shape = len(rows), layout.across, layout.unit, samples
    predictor = directory.value(tags.PREDICTOR, 1) if layout.compression != 1 else 1
    if predictor == _FLOATING:
        values = _from_byte_planes(units, shape, kind)
    elif layout.bits == 8 * kind.itemsize:
        values = units.view(kind).reshape(shape)
        if predictor == _HORIZONTAL:
            values = _summed(values)
    else:
        values = _from_bits(units, shape, layout.bits, kind)
    return values.reshape(len(rows), -1, samples)[:, : layout.width]


def _summed(values: NDArray[Any]) -> NDArray[Any]:
    """Each sample was stored as the difference to that on its left, modulo the range of its type."""
    unsigned = values.view(values.dtype.str[0] + "u" + values.dtype.str[2:])
    native = unsigned.astype(unsigned.dtype.newbyteorder("="))
    return np.cumsum(native, axis=2, dtype=native.dtype).view(values.dtype.newbyteorder("="))


def _from_byte_planes(units: UInt8Array, shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    """Floats stored as the differences of their bytes: first all highest bytes of a row, then the next lower ones."""
    rows, tiles, pixels, samples = shape
    size = kind.itemsize
    if kind.kind != "f":
        raise RejectedImageError("broken", "the predictor of floats on integers")
    steps = units.reshape(rows, tiles, -1, samples)
    summed = np.cumsum(steps, axis=2, dtype=np.uint8).reshape(rows, tiles, size, pixels * samples)
    big_endian = np.ascontiguousarray(summed.transpose(0, 1, 3, 2))
    return big_endian.view(f">f{size}").reshape(shape)


def _from_bits(units: UInt8Array, shape: tuple[int, ...], bits: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """Samples of any number of bits, packed from the highest bit on; each row begins with a whole byte."""
    rows, tiles, pixels, samples = shape
    if bits % 8 == 0 and kind.byteorder == "<":  # Whole bytes are in the file's order.
        units = units.reshape(rows, tiles, -1, bits // 8)[..., ::-1].reshape(units.shape)
    single = np.unpackbits(units, axis=2)[:, :, : pixels * samples * bits].reshape(rows, tiles, pixels, samples, bits)
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.uint64)
    return (single @ weights).astype(kind.newbyteorder("="))

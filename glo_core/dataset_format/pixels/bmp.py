"""BMP files: Pillow decodes them, but for colors at places of a header's own choice."""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glo_core.common.arrays import UInt8Array
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.pixels.exif import UPRIGHT
from glo_core.dataset_format.pixels.pillow import bytes_per_pixel, open_picture, raster_of
from glo_core.dataset_format.pixels.raster import Raster, check_memory, check_size, over_background
from glo_core.dataset_format.rejection import RejectedImageError

_FILE_HEADER, _INFO_HEADER = 14, 40
_BIT_FIELDS = frozenset({3, 6})
"""Compressions that name a mask for each color; 6 has one of transparency too"""


def open_bmp(data: bytes, policy: ResolvedDatasetConfig) -> Raster:
    """Decode a BMP.

    Raises:
        RejectedImageError: `broken` or `truncated`.
    """
    if len(data) >= _FILE_HEADER + _INFO_HEADER:
        size, width, height, _, bits, compression = struct.unpack_from("<IiiHHI", data, _FILE_HEADER)
        if size >= _INFO_HEADER and compression in _BIT_FIELDS and bits in (16, 32):
            return _with_masks(data, (size, width, height, bits, compression), policy)
    image = open_picture(data, "BMP")
    check_size(*image.size, policy)
    check_memory(*image.size, image.width * image.height * bytes_per_pixel(image), policy)
    image.load()
    return raster_of(image, policy, orientation=UPRIGHT, profile=b"")


def _with_masks(data: bytes, header: tuple[int, ...], policy: ResolvedDatasetConfig) -> Raster:
    header_size, width, height, bits, compression = header
    down, height = height < 0, abs(height)
    check_size(width, height, policy)
    row = (width * bits + 31) // 32 * 4
    check_memory(width, height, row * height, policy)
    masks = [int(mask) for mask in np.frombuffer(data, "<u4", 4, _FILE_HEADER + _INFO_HEADER)]
    if header_size < _INFO_HEADER + 16 and compression != 6:  # An older header ends before the mask of transparency.
        masks[3] = 0
    if not any(masks[:3]):
        masks = [0xFF0000, 0xFF00, 0xFF, 0xFF000000] if bits == 32 else [0x7C00, 0x3E0, 0x1F, 0]
    (start,) = struct.unpack_from("<I", data, 10)
    if start > len(data):
        raise RejectedImageError("broken", f"pixels at {start} of {len(data)} bytes")
    if start + row * height > len(data):
        if not policy.allow_truncated:
            raise RejectedImageError("truncated", f"{len(data)} bytes of {start + row * height}")
        data = data.ljust(start + row * height, b"\0")
    values = np.frombuffer(data, f"<u{bits // 8}", row * height * 8 // bits, start).reshape(height, -1)[:, :width]
    values = values if down else values[::-1]
    # Transparency that is zero everywhere is none: it was never written.
    alpha_mask = masks[3] if bool((values & masks[3]).any()) else 0

    def rows(first: int, last: int) -> Image.Image:
        part = values[first:last]
        colors = Image.fromarray(np.stack([_band(part, mask) for mask in masks[:3]], axis=2))
        return over_background(colors, Image.fromarray(_band(part, alpha_mask)), policy) if alpha_mask else colors

    return Raster((width, height), rows, (width, height))


def _band(values: NDArray[Any], mask: int) -> UInt8Array:
    """The bits of `mask`, spread over 0 to 255."""
    if mask == 0:
        return np.zeros(values.shape, np.uint8)
    lowest = mask & -mask
    return ((values & mask) // lowest * (255.0 / (mask // lowest))).round().astype(np.uint8)

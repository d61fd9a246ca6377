"""TIFF files: every kind of sample, read as bytes that Pillow decompressed.

Pillow reads a fixed list of combinations of depth, sign, color and planes, and some of them wrongly. So a picture is
handed to it as gray bytes, and the samples in these bytes are put together here. JPEG, fax and YCbCr remain Pillow's.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glo_core.common.arrays import UInt8Array
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.pixels import exif
from glo_core.dataset_format.pixels import tiff_tags as tags
from glo_core.dataset_format.pixels.color import to_srgb
from glo_core.dataset_format.pixels.pillow import bytes_per_pixel, open_picture, raster_of
from glo_core.dataset_format.pixels.raster import (
    STRIP_PIXELS,
    Raster,
    check_memory,
    check_size,
    over_background,
    require_size,
)
from glo_core.dataset_format.pixels.samples import LONGEST_FIXED, largest_value, scale_of, to_bytes
from glo_core.dataset_format.pixels.tiff_layout import Layout, plane_as_bytes, read_layout, without_other_tags
from glo_core.dataset_format.pixels.tiff_samples import sample_type, unpack
from glo_core.dataset_format.pixels.tiff_tags import Directory, first_directory, is_raw_camera_file
from glo_core.dataset_format.rejection import RejectedImageError

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_COLORS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4}
"""Samples of a pixel's color"""
_FAX, _OLD_JPEG, _JPEG = frozenset({2, 3, 4}), 6, 7
_ASSOCIATED, _UNASSOCIATED = 1, 2
_FOR_PILLOW = (tags.WIDTH, tags.BITS, tags.PHOTOMETRIC, tags.FILL_ORDER, tags.SAMPLES, tags.PLANAR, tags.PREDICTOR,
               292, 293, 338, 339, 347, 529, 530, 531, 532)  # fmt: skip
"""What fax, JPEG and YCbCr need beside the layout"""


def open_tiff(data: bytes, policy: ResolvedDatasetConfig) -> Raster:
    """Decode the first picture of a TIFF or BigTIFF.

    Raises:
        RejectedImageError: `unknown format` for a raw camera file; `broken`.
    """
    directory = first_directory(data)
    if directory is None:
        raise RejectedImageError("broken", "no directory")
    if is_raw_camera_file(data):
        raise RejectedImageError("unknown format", "a raw camera file")
    layout = read_layout(directory)
    check_size(layout.width, layout.height, policy)
    colors = directory.value(tags.PHOTOMETRIC, _WHITE_IS_ZERO)
    turned, profile = exif.valid(directory.value(tags.ORIENTATION, 1)), directory.raw(tags.COLOR_PROFILE)
    if layout.compression in {_OLD_JPEG, _JPEG, *_FAX} or colors in (_YCBCR, _LAB):
        # Old-style JPEG points into its own file.
        stream = data if layout.compression == _OLD_JPEG else without_other_tags(directory, layout, _FOR_PILLOW)
        image = open_picture(stream, "TIFF")
        require_size(image.size, (layout.width, layout.height))
        needed = image.width * image.height * (bytes_per_pixel(image) + 4)
        check_memory(*image.size, needed + layout.part_bytes, policy)
        image.load()
        return raster_of(image, policy, orientation=turned if stream is not data else exif.UPRIGHT, profile=profile)
    if colors not in _COLORS or layout.samples < _COLORS[colors]:
        raise RejectedImageError("broken", f"photometric interpretation {colors} of {layout.samples} samples")
    return _Picture(directory, layout, colors, policy).raster(turned, profile)


class _Picture:
    """The samples of one picture, decompressed."""

    def __init__(self, directory: Directory, layout: Layout, colors: int, policy: ResolvedDatasetConfig) -> None:
        self._directory, self._layout, self._colors, self._policy = directory, layout, colors, policy
        self._type = sample_type(layout.bits, directory.value(tags.SAMPLE_FORMAT, 1), directory.order)
        needed = layout.row_bytes * layout.height * layout.planes
        check_memory(layout.width, layout.height, needed + len(directory.data) + layout.part_bytes, policy)
        self._planes = []
        for plane in range(layout.planes):
            image = open_picture(plane_as_bytes(directory, layout, plane), "TIFF")
            require_size(image.size, (layout.row_bytes, layout.height))
            image.load()
            self._planes.append(image)
        self._scale = scale_of(self._type, layout.bits, self._largest())
        self._map = self._color_map() if colors == _PALETTE else None
        extra = directory.values(tags.EXTRA_SAMPLES)
        count = _COLORS[colors]
        # Who says nothing of one sample more means transparency.
        kind = extra[0] if extra else _UNASSOCIATED if layout.samples == count + 1 else 0
        self._alpha = count if layout.samples > count and kind in (_ASSOCIATED, _UNASSOCIATED) else None
        self._associated = kind == _ASSOCIATED

    def raster(self, orientation: int, profile: bytes) -> Raster:
        """The raster of the picture."""

        def rows(first: int, last: int) -> Image.Image:
            samples = self._samples(first, last)
            colors, alpha = self._in_bytes(samples)
            image = _image(colors)
            if alpha is None:
                return image
            return over_background(to_srgb(image, profile, self._policy), Image.fromarray(alpha), self._policy)

        size = self._layout.width, self._layout.height
        return Raster(size, rows, size, orientation, profile if self._alpha is None else b"")

    def _samples(self, first: int, last: int) -> NDArray[Any]:
        """Rows of samples, `[h, w, samples]`."""
        planes = []
        for image in self._planes:
            rows = np.asarray(image.crop((0, first, image.width, last)))
            planes.append(unpack(rows, self._layout, self._type, self._directory))
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)

    def _largest(self) -> float:
        """The largest color of the picture, where its scale depends on it."""
        layout = self._layout
        if self._type.kind != "f" and layout.bits <= LONGEST_FIXED:
            return 0.0
        step = max(STRIP_PIXELS // layout.width, 1)
        count = _COLORS[self._colors]
        starts = range(0, layout.height, step)
        return max(
            largest_value(self._samples(start, min(start + step, layout.height))[..., :count]) for start in starts
        )

    def _color_map(self) -> UInt8Array:
        """The palette, uint8 `[2^bits, 3]`."""
        values = np.array(self._directory.values(tags.COLOR_MAP), np.uint32)
        if self._layout.bits > 16 or self._type.kind == "f" or len(values) != 3 << self._layout.bits:
            raise RejectedImageError("broken", f"a palette of {len(values)} values for {self._layout.bits} bits")
        if values.max() > 255:  # Some writers put 8 bits there.
            values = (values + 128) // 257
        return values.reshape(3, -1).T.astype(np.uint8)

    def _in_bytes(self, samples: NDArray[Any]) -> tuple[UInt8Array, UInt8Array | None]:
        """Colors, uint8 `[h, w, bands]`, and transparency, uint8 `[h, w]` or None."""
        count = _COLORS[self._colors]
        if self._map is not None:
            colors = self._map[samples[..., 0].astype(np.intp)]
        else:
            colors = to_bytes(samples[..., :count], self._scale)
            colors = 255 - colors if self._colors == _WHITE_IS_ZERO else colors
        if self._alpha is None:
            return colors, None
        alpha = to_bytes(samples[..., self._alpha], self._scale)
        if self._associated:
            colors = (colors * (255.0 / np.maximum(alpha, 1))[..., None]).round().clip(0, 255).astype(np.uint8)
        return colors, alpha


def _image(colors: UInt8Array) -> Image.Image:
    """An image of uint8 `[h, w, bands]`: gray, RGB or CMYK."""
    height, width, bands = colors.shape
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[bands]
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(colors).tobytes())

"""The pixels of one file as it stores them, and how a part of them becomes a small square.

Work is done on strips of rows, so that a large image never exists twice: depth, color and transparency of a strip are
brought to 8 bits in sRGB over the background, and its rows are resized at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageColor

from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.pixels.color import to_srgb
from glo_core.dataset_format.pixels.exif import SWAPPED, UPRIGHT, Box
from glo_core.dataset_format.rejection import RejectedImageError

MAX_BYTES = 640 * 2**20
"""Most memory that the pixels of one image may take while it is decoded"""
STRIP_PIXELS = 4 * 2**20
"""Pixels that are brought to 8 bits at once"""
_SUPPORT = 2
"""Bicubic's radius, in pixels of the smaller image"""

_FLIP = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    6: Image.Transpose.FLIP_LEFT_RIGHT,
    7: Image.Transpose.ROTATE_180,
    8: Image.Transpose.FLIP_TOP_BOTTOM,
}
"""How the stored picture of an orientation becomes upright, after its axes were swapped where that is needed."""


@dataclass(frozen=True)
class Raster:
    """One image as its file stores it, decoded."""

    size: tuple[int, int]
    """Width and height as stored, in pixels"""
    rows: Callable[[int, int], Image.Image]
    """Rows of the decoded image, from the first and up to the second, in mode L, RGB, CMYK or LAB"""
    decoded: tuple[int, int]
    """Width and height as decoded: smaller where libjpeg scaled"""
    orientation: int = UPRIGHT
    """EXIF's orientation, 1 to 8"""
    profile: bytes = b""
    """The color profile of what `rows` gives, or b"" """
    shrink: float = 1.0
    """Stored pixels per decoded pixel"""


def check_size(width: int, height: int, policy: ResolvedDatasetConfig) -> None:
    """Refuse an image with a side that the dataset does not take.

    Raises:
        RejectedImageError: `too small`, or `broken` where a side is nothing.
    """
    if min(width, height) < 1:
        raise RejectedImageError("broken", f"{width} x {height} pixels")
    if min(width, height) < policy.min_side:
        raise RejectedImageError("too small", f"{width} x {height}")


def require_size(opened: tuple[int, int], checked: tuple[int, int]) -> None:
    """Refuse a file that its decoder opens with another size, in pixels, than the one that was checked.

    Raises:
        RejectedImageError: `broken`.
    """
    if opened != checked:
        stated = " and ".join(f"{width} x {height}" for width, height in (checked, opened))
        raise RejectedImageError("broken", f"its headers state {stated} pixels")


def check_memory(width: int, height: int, bytes_needed: float, policy: ResolvedDatasetConfig) -> None:
    """Refuse an image of `width` x `height` decoded pixels that takes too much memory while it is decoded.

    Raises:
        RejectedImageError: `too many pixels`.
    """
    if width * height > policy.max_pixels:
        raise RejectedImageError("too many pixels", f"{width} x {height}")
    if bytes_needed > MAX_BYTES:
        mebibytes = f"{bytes_needed / 2**20:.0f} MiB, more than {MAX_BYTES // 2**20}"
        raise RejectedImageError("too many pixels", f"{width} x {height} would take {mebibytes}")


def resize_square(raster: Raster, box: Box, policy: ResolvedDatasetConfig) -> Image.Image:
    """The upright square of the policy's resolution and mode that shows `box` of the stored image."""
    side, (width, height) = policy.resolution, raster.decoded
    left, top = box.left / raster.shrink, box.top / raster.shrink
    right, bottom = min(box.right / raster.shrink, width), min(box.bottom / raster.shrink, height)
    # The filter widens with the reduction, so that bicubic downscaling is antialiased.
    margin = int(_SUPPORT * max((bottom - top) / side, 1)) + 1
    first, last = max(int(top) - margin, 0), min(int(bottom) + margin + 1, height)
    step, swapped = max(STRIP_PIXELS // width, 1), raster.orientation in SWAPPED
    if last - first <= step:
        square = raster.rows(first, last)
        area = left, top - first, right, bottom - first
        if swapped:
            square, area = square.transpose(Image.Transpose.TRANSPOSE), (area[1], area[0], area[3], area[2])
            swapped = False
    else:
        # Pillow resizes rows first, then columns: strip by strip gives the same pixels.
        square = _narrowed(raster, (first, last, step), (left, right), side)
        area = 0.0, top - first, float(side), bottom - first
    square = square.resize((side, side), Image.Resampling.BICUBIC, box=area)
    if swapped:
        square = square.transpose(Image.Transpose.TRANSPOSE)
    if raster.orientation in _FLIP:
        square = square.transpose(_FLIP[raster.orientation])
    square = to_srgb(square, raster.profile, policy)
    return square if square.mode == policy.mode else square.convert(policy.mode)


def _narrowed(raster: Raster, rows: tuple[int, int, int], columns: tuple[float, float], width: int) -> Image.Image:
    """Rows first to last (`rows`, with a step) of an image, each reduced from `columns` to `width` pixels."""
    first, last, step = rows
    narrow: Image.Image | None = None
    for start in range(first, last, step):
        strip = raster.rows(start, min(start + step, last))
        strip = strip.resize(
            (width, strip.height), Image.Resampling.BICUBIC, box=(columns[0], 0, columns[1], strip.height)
        )
        narrow = narrow or Image.new(strip.mode, (width, last - first))
        narrow.paste(strip, (0, start - first))
    assert narrow is not None
    return narrow


def over_background(colors: Image.Image, alpha: Image.Image, policy: ResolvedDatasetConfig) -> Image.Image:
    """`colors` (L or RGB, sRGB) where `alpha` (L) is 255, and the policy's background where it is 0."""
    below = ImageColor.getrgb(policy.background)[:3]
    if colors.mode == "L" and len(set(below)) == 1:
        return Image.composite(colors, Image.new("L", colors.size, below[0]), alpha)
    return Image.composite(colors.convert("RGB"), Image.new("RGB", colors.size, below), alpha)

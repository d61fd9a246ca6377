"""Images that Pillow decodes, and their rows in a mode that is resized band by band."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from glo_core.common.arrays import BoolArray
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.pixels.color import to_srgb
from glo_core.dataset_format.pixels.headers import Format
from glo_core.dataset_format.pixels.raster import Raster, over_background

PLAIN = frozenset({"L", "RGB", "CMYK", "LAB"})
"""Modes whose bands are resized as they are"""
BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2}
"""Of Pillow's modes in memory; all others take four"""

Matches = Callable[[int, int], BoolArray]
"""Of the rows from the first and up to the second: which pixels are transparent, bool `[h, w]`"""


def open_picture(stream: bytes, kind: Format) -> ImageFile.ImageFile:
    """Open an image of `kind`, with its size and mode, and nothing decoded yet.

    Raises:
        OSError: where its header cannot be read; other exceptions of Pillow's too.
    """
    try:
        return Image.open(io.BytesIO(stream), formats=(kind,))
    except UnidentifiedImageError:  # Its text has an address in memory.
        raise OSError("the header cannot be read") from None


def bytes_per_pixel(image: Image.Image) -> int:
    """How much memory a pixel of a decoded `image` takes."""
    return BYTES_PER_PIXEL.get(image.mode, 4)


def raster_of(
    image: Image.Image, policy: ResolvedDatasetConfig, *, orientation: int, profile: bytes, gray: bool = False
) -> Raster:
    """The raster of a decoded image of any 8-bit mode.

    Args:
        image: decoded, in one of Pillow's modes of 1 or 8 bits.
        policy: gives the background of transparent pixels.
        orientation: EXIF's, 1 to 8.
        profile: the embedded color profile, or b"".
        gray: whether three color bands hold the same gray.
    """

    def part(first: int, last: int) -> Image.Image:
        whole = first == 0 and last == image.height
        return image if whole else image.crop((0, first, image.width, last))

    def flat(first: int, last: int) -> Image.Image:
        colors, alpha = _split(part(first, last), gray)
        return colors if alpha is None else over_background(to_srgb(colors, profile, policy), alpha, policy)

    transparent = image.has_transparency_data
    return Raster(
        size=image.size,
        rows=part if image.mode in PLAIN and not transparent else flat,
        decoded=image.size,
        orientation=orientation,
        # The colors under transparency are converted before they are laid over the background, which is sRGB.
        profile=b"" if transparent else profile,
    )


def with_transparent_color(raster: Raster, matches: Matches, policy: ResolvedDatasetConfig) -> Raster:
    """`raster` with the background where `matches` says so."""

    def rows(first: int, last: int) -> Image.Image:
        colors = to_srgb(raster.rows(first, last), raster.profile, policy)
        alpha = Image.fromarray(np.where(matches(first, last), 0, 255).astype(np.uint8))
        return over_background(colors, alpha, policy)

    return Raster(raster.size, rows, raster.decoded, raster.orientation)


def _split(image: Image.Image, gray: bool) -> tuple[Image.Image, Image.Image | None]:
    """Colors (L or RGB) and transparency (L, or None) of an image of another mode."""
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    if not image.has_transparency_data:
        return image.convert("L" if image.mode == "1" else "RGB"), None
    image = image.convert("RGBA")
    return image.getchannel("R") if gray else image.convert("RGB"), image.getchannel("A")

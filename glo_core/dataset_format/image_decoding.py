"""From the bytes of an image file to the pixels that a dataset holds: one function, the same for every stage.

bytes -> format -> pixels as stored (`pixels/`) -> 8 bits, sRGB, over the background -> central square, upright
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from glo_core.common.arrays import UInt8Array
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.pixels import exif
from glo_core.dataset_format.pixels.bmp import open_bmp
from glo_core.dataset_format.pixels.headers import Format, format_of
from glo_core.dataset_format.pixels.jpeg import open_jpeg
from glo_core.dataset_format.pixels.other import open_gif, open_webp
from glo_core.dataset_format.pixels.png import open_png
from glo_core.dataset_format.pixels.raster import resize_square
from glo_core.dataset_format.pixels.tiff import open_tiff
from glo_core.dataset_format.rejection import RejectedImageError

_OPEN = {
    "JPEG": open_jpeg,
    "PNG": open_png,
    "WEBP": open_webp,
    "BMP": open_bmp,
    "TIFF": open_tiff,
    "GIF": open_gif,
}

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


class Decoded(NamedTuple):
    """One decoded image."""

    pixels: UInt8Array
    """uint8 `[resolution, resolution, channels]`"""
    width: int
    """Width of the file's image in pixels, as stored"""
    height: int


def decode(data: bytes, policy: ResolvedDatasetConfig) -> Decoded:
    """Decode, turn upright, flatten, crop to the central square and resize with antialiasing.

    Sets two of Pillow's globals while it runs, so that one process decodes on one thread.

    Raises:
        RejectedImageError: if `data` is empty, of another format, broken, cut short, too large or too small.
    """
    if not data:
        raise RejectedImageError("empty")
    kind = format_of(data)
    if kind is None:
        raise RejectedImageError("unknown format")
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    # The size is checked by the memory that it takes, before anything is decoded.
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, policy.allow_truncated
    try:
        raster = _OPEN[kind](data, policy)
        width, height = raster.size
        box = exif.stored_box(width, height, min(width, height, policy.tight_crop or width), raster.orientation)
        square = resize_square(raster, box, policy)
    except RejectedImageError:
        raise
    except MemoryError:
        raise RejectedImageError("broken", "asks for more memory than there is") from None
    except Exception as error:  # Damaged files make their readers raise whatever there is.
        detail = str(error) or type(error).__name__
        raise RejectedImageError("truncated" if _cut_short(data, kind) else "broken", detail) from None
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before
    pixels = np.frombuffer(square.tobytes(), np.uint8)
    return Decoded(pixels.reshape(policy.resolution, policy.resolution, policy.channels), width, height)


def _cut_short(data: bytes, kind: Format) -> bool:
    """Whether the end that the format promises is missing; a TIFF promises none."""
    if kind == "PNG":
        return b"IEND" not in data[-16:]
    if kind == "GIF":
        return not data.rstrip(b"\0").endswith(b";")
    if kind == "WEBP":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    return kind == "BMP" and len(data) < int.from_bytes(data[2:6], "little")

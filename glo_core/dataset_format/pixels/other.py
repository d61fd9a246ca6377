"""WebP and GIF files, which Pillow decodes; of an animation the first frame."""

from PIL import Image

from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.pixels import exif
from glo_core.dataset_format.pixels.headers import Format
from glo_core.dataset_format.pixels.pillow import open_picture, raster_of
from glo_core.dataset_format.pixels.raster import Raster, check_memory, check_size

_WEBP_BYTES = 20
"""Of a pixel: libwebp keeps two canvases and the frame, Pillow a copy and the image"""
_GIF_BYTES = 2


def open_webp(data: bytes, policy: ResolvedDatasetConfig) -> Raster:
    """Decode a WebP; errors as of `_loaded`."""
    image = _loaded(data, "WEBP", _WEBP_BYTES, policy)
    turned = exif.orientation(image.info.get("exif", b""))
    return raster_of(image, policy, orientation=turned, profile=image.info.get("icc_profile", b""))


def open_gif(data: bytes, policy: ResolvedDatasetConfig) -> Raster:
    """Decode the first frame of a GIF; errors as of `_loaded`."""
    return raster_of(_loaded(data, "GIF", _GIF_BYTES, policy), policy, orientation=exif.UPRIGHT, profile=b"")


def _loaded(data: bytes, kind: Format, bytes_per_pixel: int, policy: ResolvedDatasetConfig) -> Image.Image:
    """The image as Pillow decodes it, once its size and the memory that it takes have been checked.

    Raises:
        RejectedImageError: where it is too small or too large.
        OSError: where it is damaged; other exceptions of Pillow's too.
    """
    image = open_picture(data, kind)
    check_size(*image.size, policy)
    check_memory(*image.size, image.width * image.height * bytes_per_pixel, policy)
    image.load()
    return image

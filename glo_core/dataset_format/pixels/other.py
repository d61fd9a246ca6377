"""WebP and GIF files, which Pillow decodes; of an animation the first frame."""

from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.pixels import exif
from glo_core.dataset_format.pixels.pillow import open_picture, raster_of
from glo_core.dataset_format.pixels.raster import Raster, check_memory, check_size

_WEBP_BYTES = 20
"""Of a pixel: libwebp keeps two canvases and the frame, Pillow a copy and the image"""
_GIF_BYTES = 2


def open_webp(data: bytes, policy: ResolvedDatasetConfig) -> Raster:
    """Decode a WebP.

    Raises:
        RejectedImageError: where it is too small or too large.
        OSError: where it is damaged; other exceptions of Pillow's too.
    """
    image = open_picture(data, "WEBP")
    check_size(*image.size, policy)
    check_memory(*image.size, image.width * image.height * _WEBP_BYTES, policy)
    image.load()
    turned = exif.orientation(image.info.get("exif", b""))
    return raster_of(image, policy, orientation=turned, profile=image.info.get("icc_profile", b""))


def open_gif(data: bytes, policy: ResolvedDatasetConfig) -> Raster:
    """Decode the first frame of a GIF.

    Raises:
        RejectedImageError: where it is too small or too large.
        OSError: where it is damaged; other exceptions of Pillow's too.
    """
    image = open_picture(data, "GIF")
    check_size(*image.size, policy)
    check_memory(*image.size, image.width * image.height * _GIF_BYTES, policy)
    image.load()
    return raster_of(image, policy, orientation=exif.UPRIGHT, profile=b"")

"""From the bytes of an image file to the pixels that a dataset holds: one function, the same for every stage."""

import functools
import io
import struct
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageFile, ImageOps, UnidentifiedImageError

from glo_core.common.arrays import UInt8Array
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.rejection import RejectedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Pillow's names of the formats that are read; of an animation, the first frame."""

MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"GIF8")
"""How their files begin."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

EXIF_ORIENTATION = 0x0112
SWAPPED, MIRRORED_X, MIRRORED_Y = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
"""Orientations whose upright image has width and height exchanged, the stored right side left, the bottom on top."""
EXIF_KEYS = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
"""Where Pillow keeps what may hold an orientation; of a TIFF it is among the tags."""


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
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    # Pillow raises beyond twice its limit, before anything is decoded.
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = policy.max_pixels, policy.allow_truncated
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > policy.max_pixels:
                raise RejectedImageError("too many pixels", f"{width} x {height}")
            if min(width, height) < policy.min_side:
                raise RejectedImageError("too small", f"{width} x {height}")
            square = _square(image, policy)
    except UnidentifiedImageError:
        if not data.startswith(MAGIC):
            raise RejectedImageError("unknown format") from None
        raise RejectedImageError("truncated" if _cut_short(data) else "broken", "the header cannot be read") from None
    except Image.DecompressionBombError as error:
        raise RejectedImageError("too many pixels", str(error)) from None
    except MemoryError:
        raise RejectedImageError("broken", "asks for more memory than there is") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RuntimeError,
        NotImplementedError,
        ZeroDivisionError,
        AssertionError,
        struct.error,
    ) as error:  # All that Pillow's readers were seen to raise on damaged files.
        detail = str(error) or type(error).__name__
        raise RejectedImageError("truncated" if _cut_short(data) else "broken", detail) from None
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before
    pixels = np.frombuffer(square.tobytes(), np.uint8)
    return Decoded(pixels.reshape(policy.resolution, policy.resolution, policy.channels), width, height)


def _cut_short(data: bytes) -> bool:
    """Whether the end that the format promises is missing; a TIFF promises none."""
    if data.startswith(b"\xff\xd8"):
        return not data.rstrip(b"\0").endswith(b"\xff\xd9")
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-16:]
    if data.startswith(b"GIF8"):
        return not data.rstrip(b"\0").endswith(b";")
    if data.startswith(b"RIFF"):
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    return data.startswith(b"BM") and len(data) < int.from_bytes(data[2:6], "little")


def _square(image: Image.Image, policy: ResolvedDatasetConfig) -> Image.Image:
    """The upright central square of `image` in the policy's mode and at its resolution."""
    width, height = image.size
    side = min(width, height, policy.tight_crop or width)
    shrink = _draft(image, policy, side) if policy.draft and image.format == "JPEG" else 1.0
    image.load()
    pad_x = pad_y = 0.0
    if image.format == "TIFF" or not EXIF_KEYS.isdisjoint(image.info):
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        if orientation in SWAPPED:
            width, height = height, width
        image = _upright(image, orientation)
        # libjpeg fills the last row and column up to a whole pixel of the small image; turned, they may be the first.
        pad_x = image.width * shrink - width if orientation in MIRRORED_X else 0.0
        pad_y = image.height * shrink - height if orientation in MIRRORED_Y else 0.0
    if image.mode not in ("L", "RGB") or "transparency" in image.info:
        image = _flatten(image, policy)
    left, top = ((width - side) // 2 + pad_x) / shrink, ((height - side) // 2 + pad_y) / shrink
    box = left, top, min(left + side / shrink, image.width), min(top + side / shrink, image.height)
    # Pillow's filters widen with the reduction, so that bicubic downscaling is antialiased.
    square = image.resize((policy.resolution, policy.resolution), Image.Resampling.BICUBIC, box=box)
    if square.mode != policy.mode or "icc_profile" in square.info:
        square = _to_mode(square, policy)
    return square


def _draft(image: Image.Image, policy: ResolvedDatasetConfig, side: int) -> float:
    """Have libjpeg scale in the frequency domain, while `side` pixels still cover the resolution. Returns 1 to 8."""
    width, height = image.size
    least = max(policy.resolution * width // side, 1), max(policy.resolution * height // side, 1)
    mode = "L" if policy.channels == 1 and not _foreign_profile(image, policy) else None
    drafted = image.draft(mode, least)
    return width / drafted[1][2] if drafted else 1.0


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation == 1:
        return image
    turned: Image.Image = ImageOps.exif_transpose(image)
    turned.info = image.info
    return turned


def _flatten(image: Image.Image, policy: ResolvedDatasetConfig) -> Image.Image:
    """Bring to a mode that is resized channel by channel: L, RGB, CMYK or LAB; transparency over the background."""
    if image.mode.startswith(("I", "F")):
        # Pillow clips 16-bit gray at 255 instead of scaling it: bring [0, 65535] to [0, 255] first.
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        values = values / 257 if values.max(initial=0) > 255 else values
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        flat = image.convert("RGBA")
        below = Image.new("RGBA", image.size, (*ImageColor.getrgb(policy.background)[:3], 255))
        flat = Image.alpha_composite(below, flat).convert("RGB")
    elif image.mode in ("CMYK", "LAB"):
        return image
    else:
        flat = image.convert("L" if image.mode == "1" else "RGB")
    # A profile of the RGB colors still holds; one of another mode's does not fit, and is ignored further down.
    flat.info = {"icc_profile": image.info["icc_profile"]} if "icc_profile" in image.info else {}
    return flat


# ---------------------------------------------------------------- color


def _to_mode(square: Image.Image, policy: ResolvedDatasetConfig) -> Image.Image:
    """From L, RGB, CMYK or LAB to the policy's mode, through the embedded profile where there is one."""
    transform = None
    if square.mode == "LAB":
        transform = _lab_to_srgb()  # Pillow itself has no such conversion.
    elif _foreign_profile(square, policy):
        transform = _to_srgb(square.info["icc_profile"], square.mode)
    if transform is not None:
        square = transform.apply(square)
    return square if square.mode == policy.mode else square.convert(policy.mode)


def _foreign_profile(image: Image.Image, policy: ResolvedDatasetConfig) -> bool:
    profile = image.info.get("icc_profile", b"")
    return policy.srgb and bool(profile) and b"sRGB" not in profile and b"s\0R\0G\0B" not in profile


@functools.lru_cache(maxsize=64)
def _to_srgb(profile: bytes, mode: str) -> Any:
    """The transform of a profile, or None where it does not fit the image: then its colors stay."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


@functools.cache
def _lab_to_srgb() -> Any:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")

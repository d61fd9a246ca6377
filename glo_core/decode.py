"""From the bytes of an image file to the pixels that a dataset holds: one function, the same for every stage."""

import io
import struct
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from glo_core.config import Config

UInt8Array = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Pillow's names of the formats that are read; of an animation, the first frame."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


@dataclass(frozen=True, kw_only=True)
class DecodePolicy(Config):
    """How a file becomes pixels. Two datasets of different policies hold different images."""

    resolution: int = 64
    """Side of the square images in pixels: 4 * 2^n with n >= 1"""
    channels: int = 3
    """1 for grey, 3 for RGB"""
    tight_crop: int = 0
    """Side in pixels of a central crop taken before resizing (CelebA's faces: 108); 0 crops to the shorter side"""
    background: str = "#ffffff"
    """Colour under transparent pixels, as '#rrggbb' or a CSS name"""

    def __post_init__(self) -> None:
        side = self.resolution
        if side < 8 or side & (side - 1):
            raise ValueError(f"`resolution` (={side}) must be 4 * 2^n: 8, 16, 32, 64, 128, 256, ...")
        if self.channels not in (1, 3):
            raise ValueError(f"`channels` (={self.channels}) must be 1 (grey) or 3 (RGB)")
        if self.tight_crop < 0:
            raise ValueError(f"`tight_crop` (={self.tight_crop}) must be 0 (off) or a side in pixels")
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise ValueError(f"`background` (={self.background!r}) must be a colour such as '#ffffff'") from None


class Decoded(NamedTuple):
    pixels: UInt8Array
    """uint8 `[resolution, resolution, channels]`"""
    width: int
    """Width of the file's image in pixels, as stored"""
    height: int


class RejectedImageError(Exception):
    """The bytes are no image that can be read; the message is a short reason."""


def decode(data: bytes, policy: DecodePolicy) -> Decoded:
    """Decode, turn upright, flatten, crop to the central square and resize with antialiasing.

    Raises:
        RejectedImageError: if `data` is empty, of another format, broken or cut short.
    """
    if not data:
        raise RejectedImageError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; a decompression bomb is an error below.
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height > (Image.MAX_IMAGE_PIXELS or width * height):
                    raise Image.DecompressionBombError(f"{width}x{height} pixels")
                image.load()
                upright = ImageOps.exif_transpose(image)
                square = _central_square(_flatten(upright, policy), policy)
    except UnidentifiedImageError:
        raise RejectedImageError("not an image of a known format") from None
    except Image.DecompressionBombError:
        raise RejectedImageError("too many pixels") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        TypeError,
        KeyError,
        struct.error,
    ) as error:
        raise RejectedImageError(f"broken: {str(error) or type(error).__name__}".replace("\n", " ")[:120]) from None
    return Decoded(np.asarray(square).reshape(policy.resolution, policy.resolution, policy.channels), width, height)


def _flatten(image: Image.Image, policy: DecodePolicy) -> Image.Image:
    """Convert to the policy's mode, with transparency over its background."""
    mode = "L" if policy.channels == 1 else "RGB"
    if image.mode.startswith(("I", "F")):
        # Pillow clips 16-bit grey at 255 instead of scaling it: bring [0, 65535] to [0, 255] first.
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((values / 257 if values.max(initial=0) > 255 else values).round().astype(np.uint8))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, (*ImageColor.getrgb(policy.background)[:3], 255))
        image = Image.alpha_composite(below, image)
    return image.convert("RGB").convert(mode) if image.mode == "P" else image.convert(mode)


def _central_square(image: Image.Image, policy: DecodePolicy) -> Image.Image:
    side = min(image.size)
    if policy.tight_crop:
        side = min(side, policy.tight_crop)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Pillow's filters widen with the reduction, so that bicubic downscaling is antialiased.
    return image.resize(
        (policy.resolution, policy.resolution),
        Image.Resampling.BICUBIC,
        box=(left, top, left + side, top + side),
    )

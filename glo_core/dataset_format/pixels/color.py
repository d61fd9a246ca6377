"""Embedded color profiles: a profile is judged by what it does to colors, not by its name."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from glo_core.dataset_format.config import DecodePolicy

_INVISIBLE = 2
"""A profile that changes no color by more than this, of 255, is sRGB's own, rounded"""
MAX_PROFILE = 16 * 2**20
"""Bytes of a color profile: the largest of printers have 4 MB"""
_SMALL = 64 * 2**10
"""Bytes of a profile of which many are kept"""
_GRID = 17
"""Steps of each color at which a profile is tried"""


def to_srgb(image: Image.Image, profile: bytes, policy: DecodePolicy) -> Image.Image:
    """`image`, of mode L, RGB, CMYK or LAB, in sRGB by its `profile`; unchanged where that is none, or does not fit."""
    transform = transform_of(profile, image.mode, policy)
    if transform is None and image.mode == "LAB":
        transform = _lab_to_srgb()  # Pillow itself has no such conversion.
    return image if transform is None else transform.apply(image)


def transform_of(profile: bytes, mode: str, policy: DecodePolicy) -> Any:
    """The transform to sRGB of a profile for images of `mode`, or None where it would change nothing."""
    if not policy.srgb or not 0 < len(profile) <= MAX_PROFILE:
        return None
    return (_small if len(profile) <= _SMALL else _large)(profile, mode)


def _transform(profile: bytes, mode: str) -> Any:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", intent)
        return transform if _visible(transform, mode) else None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # Damaged, or of another mode's colors
        return None


# What was built is kept for the next images, in bounded memory.
_small = functools.lru_cache(maxsize=64)(_transform)
_large = functools.lru_cache(maxsize=2)(_transform)


def _visible(transform: Any, mode: str) -> bool:
    """Whether a transform changes colors that are shown."""
    if mode == "L":
        colors = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)  # uint8 [1, 256, 3]
    elif mode == "RGB":
        steps = np.linspace(0, 255, _GRID).round().astype(np.uint8)
        colors = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)  # uint8 [1, 17^3, 3]
    else:
        return True
    probe = Image.fromarray(np.ascontiguousarray(colors[..., 0] if mode == "L" else colors))
    shown = np.asarray(transform.apply(probe), dtype=np.int16)
    return bool(abs(shown - colors).max() > _INVISIBLE)


@functools.cache
def _lab_to_srgb() -> Any:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")

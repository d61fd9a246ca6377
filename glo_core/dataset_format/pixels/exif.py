"""The orientation of an image, and nothing else of its EXIF: whatever other tags hold is no reason to reject it."""

import struct
from typing import NamedTuple

ORIENTATION = 0x0112
UPRIGHT = 1
SWAPPED, _MIRRORED_X, _MIRRORED_Y = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
_SHORT, _LONG = 3, 4
_PREFIX = b"Exif\0\0"


def orientation(exif: bytes) -> int:
    """The orientation that a block of EXIF states, 1 to 8; 1 where it states none, or is malformed.

    Args:
        exif: a TIFF header and its first directory, with or without JPEG's prefix.
    """
    exif = exif.removeprefix(_PREFIX)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return UPRIGHT
    try:
        (first,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", exif, entry)
            if tag == ORIENTATION:
                if values != 1 or kind not in (_SHORT, _LONG):
                    return UPRIGHT
                (value,) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), exif, entry + 8)
                return valid(value)
    except struct.error:  # The directory ends too early.
        pass
    return UPRIGHT


def valid(value: int) -> int:
    """`value` if it is an orientation, else 1."""
    return value if 1 <= value <= 8 else UPRIGHT


class Box(NamedTuple):
    """A rectangle in pixels, from the left and from the top."""

    left: float
    top: float
    right: float
    bottom: float


def stored_box(width: int, height: int, side: int, orientation: int) -> Box:
    """Where the central square of the upright image lies in the stored one.

    Args:
        width: of the stored image, as `height`, in pixels.
        height: of the stored image.
        side: of the square, at most the shorter of the two.
        orientation: 1 to 8.
    """
    swapped = orientation in SWAPPED
    upright_width, upright_height = (height, width) if swapped else (width, height)
    # Where width - side is odd the square lies half a pixel off the center: on the upright image's left, and top.
    x, y = (upright_width - side) // 2, (upright_height - side) // 2
    x = upright_width - side - x if orientation in _MIRRORED_X else x
    y = upright_height - side - y if orientation in _MIRRORED_Y else y
    left, top = (y, x) if swapped else (x, y)
    return Box(left, top, left + side, top + side)

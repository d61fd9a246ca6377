"""The directories of a TIFF: tags that are needed are read, and what the others hold does not matter."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

SUBFILE_TYPE: Final = 254
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = 273, 274, 277, 278, 279, 284
PREDICTOR, COLOR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 317, 320, 322, 323, 324, 325
SUB_DIRECTORIES, EXTRA_SAMPLES, SAMPLE_FORMAT, COLOR_PROFILE = 330, 338, 339, 34675
DNG_VERSION, CFA_PATTERN, CFA_PLANES = 50706, 33422, 50710

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by TIFF's number of its type"""
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
_MAX_DIRECTORIES = 32
MAX_VALUES = 3 << 16
"""Of a tag that is no place of strips: the palette of 16 bits"""

_SENSOR_COLORS = frozenset({32803, 34892})
"""Photometric interpretations of raw sensors: a color filter array, and linear raw"""
_SENSOR_COMPRESSIONS = frozenset({32767, 32769, 32770, 34713, 65000, 65535})
"""Compressions of Sony, Epson, Samsung, Nikon, Kodak and Pentax"""


@dataclass(frozen=True)
class Directory:
    """One directory of a TIFF."""

    data: bytes
    order: str
    """`<` or `>`"""
    entries: dict[int, tuple[int, int, int]]
    """By tag: TIFF's type, the number of values, and where they begin"""
    following: int
    """Where the next directory begins; 0 after the last"""

    def raw(self, tag: int) -> bytes:
        """The bytes of a tag's values; b"" where it is missing or lies outside the file."""
        kind, count, start = self.entries.get(tag, (1, 0, 0))
        size = _SIZES.get(kind, 0) * count
        return self.data[start : start + size] if start + size <= len(self.data) else b""

    def values(self, tag: int, most: int = MAX_VALUES) -> tuple[int, ...]:
        """The first integers of a tag, at most `most`; () where it is missing, malformed or of another type."""
        kind, count, start = self.entries.get(tag, (0, 0, 0))
        size = _SIZES.get(kind, 0)
        if kind not in _INTEGERS or start + size * count > len(self.data):
            return ()
        raw = memoryview(self.data)[start : start + size * min(count, most)]
        return tuple(np.frombuffer(raw, self.order + _INTEGERS[kind]).tolist()) if raw else ()

    def value(self, tag: int, default: int) -> int:
        """The first integer of a tag, or `default`."""
        values = self.values(tag, 1)
        return values[0] if values else default


def first_directory(data: bytes) -> Directory | None:
    """The directory of the first picture of a TIFF or BigTIFF, or None where there is none."""
    order = "<" if data.startswith(b"II") else ">"
    try:
        big = struct.unpack_from(order + "H", data, 2)[0] == 43
        (start,) = struct.unpack_from(order + "Q", data, 8) if big else struct.unpack_from(order + "I", data, 4)
        return _read(data, order, start, big)
    except struct.error:
        return None


def is_raw_camera_file(data: bytes) -> bool:
    """Whether a TIFF holds what a camera's sensor saw: its first picture is then a thumbnail, or no picture at all."""
    first = first_directory(data)
    if first is None:
        return False
    if DNG_VERSION in first.entries or CFA_PATTERN in first.entries:
        return True
    # A reduced picture before smaller directories' one is the thumbnail of Nikon, Sony and others.
    if first.value(SUBFILE_TYPE, 0) & 1 and SUB_DIRECTORIES in first.entries:
        return True
    return any(_of_sensor(directory) for directory in _all_directories(first))


def _of_sensor(directory: Directory) -> bool:
    return (
        directory.value(PHOTOMETRIC, 0) in _SENSOR_COLORS
        or directory.value(COMPRESSION, 1) in _SENSOR_COMPRESSIONS
        or CFA_PATTERN in directory.entries
        or CFA_PLANES in directory.entries
    )


def _all_directories(first: Directory) -> Iterator[Directory]:
    """The directories of a file, each once, at most `_MAX_DIRECTORIES`."""
    big = struct.unpack_from(first.order + "H", first.data, 2)[0] == 43
    waiting, visited = [first], set[int]()
    while waiting and len(visited) < _MAX_DIRECTORIES:
        directory = waiting.pop(0)
        yield directory
        for start in (*directory.values(SUB_DIRECTORIES)[:_MAX_DIRECTORIES], directory.following):
            if start and start not in visited:
                visited.add(start)
                try:
                    waiting.append(_read(first.data, first.order, start, big))
                except struct.error:
                    continue


def _read(data: bytes, order: str, start: int, big: bool) -> Directory:
    if start > len(data):
        raise struct.error("outside the file")
    head, entry, inline, pointer = ("Q", "HHQ", 8, "Q") if big else ("H", "HHI", 4, "I")
    (count,) = struct.unpack_from(order + head, data, start)
    at, size = start + struct.calcsize(order + head), struct.calcsize(order + entry) + inline
    entries: dict[int, tuple[int, int, int]] = {}
    for place in range(at, min(at + size * count, len(data) - size + 1), size):
        tag, kind, values = struct.unpack_from(order + entry, data, place)
        where = place + size - inline
        if _SIZES.get(kind, 0) * values > inline:
            (where,) = struct.unpack_from(order + pointer, data, where)
        entries.setdefault(tag, (kind, values, where))
    try:
        (following,) = struct.unpack_from(order + pointer, data, at + size * count)
    except struct.error:
        following = 0
    return Directory(data, order, entries, following)

"""How a TIFF lays out its samples, and a smaller TIFF with the same bytes for Pillow to decompress."""

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from glo_core.dataset_format.pixels import tiff_tags as tags
from glo_core.dataset_format.pixels.tiff_tags import Directory
from glo_core.dataset_format.rejection import RejectedImageError

UNCOMPRESSED = 1
_MAX_PARTS = 1 << 20
"""Strips and tiles of a picture: more than one row each of 16 planes of 65,536 rows"""
_LONG = 4
_GRAY = 1
_Entry = tuple[int, int, bytes]
"""TIFF's type, the number of values, and their bytes"""


@dataclass(frozen=True)
class Layout:
    """The layout of the samples of one picture."""

    width: int
    height: int
    samples: int
    """Of a pixel"""
    bits: int
    """Of a sample"""
    tile: tuple[int, int] | None
    """Width and height of its tiles; None where it has strips"""
    rows_per_strip: int
    separate: bool
    """Whether each sample has a plane of its own"""
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    compression: int

    @property
    def planes(self) -> int:
        """Planes of the file: one, or one for each sample."""
        return self.samples if self.separate else 1

    @property
    def across(self) -> int:
        """Tiles beside each other; 1 for strips."""
        return -(-self.width // self.tile[0]) if self.tile else 1

    @property
    def unit(self) -> int:
        """Pixels in a row of a tile, or of a strip."""
        return self.tile[0] if self.tile else self.width

    @property
    def unit_bytes(self) -> int:
        """Bytes of a row of a tile, or of a strip, of one plane."""
        return -(-self.unit * (1 if self.separate else self.samples) * self.bits // 8)

    @property
    def part_bytes(self) -> int:
        """Bytes of a whole strip, or tile, decompressed."""
        return self.unit_bytes * (self.tile[1] if self.tile else self.rows_per_strip)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of one plane, tiles' padding included."""
        return self.unit_bytes * self.across


def read_layout(directory: Directory) -> Layout:
    """The layout that a directory states.

    Raises:
        RejectedImageError: `broken` where it states none that can be.
    """
    width, height = directory.value(tags.WIDTH, 0), directory.value(tags.HEIGHT, 0)
    samples, bits = directory.value(tags.SAMPLES, 1), directory.values(tags.BITS) or (1,)
    if not 1 <= samples <= 16 or len(set(bits)) != 1 or not 1 <= bits[0] <= 64:
        raise RejectedImageError("broken", f"{samples} samples of {bits[:16]} bits")
    tiled = tags.TILE_OFFSETS in directory.entries
    tile = (directory.value(tags.TILE_WIDTH, 0), directory.value(tags.TILE_HEIGHT, 0)) if tiled else None
    if tile is not None and (min(tile) < 1 or tile[0] > width + 65536 or tile[1] > height + 65536):
        raise RejectedImageError("broken", f"tiles of {tile[0]} x {tile[1]}")
    rows_per_strip = max(min(directory.value(tags.ROWS_PER_STRIP, height), height), 1)
    separate = directory.value(tags.PLANAR, 1) == 2 and samples > 1
    parts = -(-height // (tile[1] if tile else rows_per_strip)) * (-(-width // tile[0]) if tile else 1)
    parts *= samples if separate else 1
    if parts > _MAX_PARTS:
        raise RejectedImageError("broken", f"{parts} strips or tiles")
    return Layout(
        width=width,
        height=height,
        samples=samples,
        bits=bits[0],
        tile=tile,
        rows_per_strip=rows_per_strip,
        separate=separate,
        offsets=directory.values(tags.TILE_OFFSETS if tiled else tags.STRIP_OFFSETS, parts),
        counts=directory.values(tags.TILE_BYTES if tiled else tags.STRIP_BYTES, parts),
        compression=directory.value(tags.COMPRESSION, UNCOMPRESSED),
    )


def plane_as_bytes(directory: Directory, layout: Layout, plane: int) -> bytes:
    """A gray TIFF of 8 bits whose samples are the decompressed bytes of one plane: `row_bytes` wide.

    Raises:
        RejectedImageError: `broken` where a part of the plane lies outside the file.
    """
    tile = layout.tile and (layout.unit_bytes, layout.tile[1])
    kept = {tags.WIDTH: layout.row_bytes, tags.BITS: 8, tags.PHOTOMETRIC: _GRAY, tags.SAMPLES: 1}
    kept[tags.FILL_ORDER] = directory.value(tags.FILL_ORDER, 1)
    entries = {tag: _packed(directory.order, [value]) for tag, value in kept.items()}
    return _rebuilt(directory, layout, plane, entries, tile)


def without_other_tags(directory: Directory, layout: Layout, kept: Sequence[int]) -> bytes:
    """The same picture in a TIFF that has no tags but those that decoding needs, and `kept`.

    Raises:
        RejectedImageError: `broken` where a part of the picture lies outside the file.
    """
    entries: dict[int, _Entry] = {}
    for tag in kept:
        if raw := directory.raw(tag):
            kind, count, _ = directory.entries[tag]
            entries[tag] = kind, count, raw
    return _rebuilt(directory, layout, None, entries, layout.tile)


def _rebuilt(
    directory: Directory, layout: Layout, plane: int | None, entries: dict[int, _Entry], tile: tuple[int, int] | None
) -> bytes:
    order, parts = directory.order, _parts(directory.data, layout, plane)
    ends = list(itertools.accumulate((len(part) for part in parts), initial=8))
    numbers = {
        tags.HEIGHT: [layout.height],
        tags.COMPRESSION: [layout.compression],
        (tags.TILE_BYTES if tile else tags.STRIP_BYTES): [len(part) for part in parts],
        (tags.TILE_OFFSETS if tile else tags.STRIP_OFFSETS): ends[:-1],
    }
    if tile:
        numbers |= {tags.TILE_WIDTH: [tile[0]], tags.TILE_HEIGHT: [tile[1]]}
    else:
        numbers[tags.ROWS_PER_STRIP] = [layout.rows_per_strip]
    start = ends[-1] + ends[-1] % 2
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    body = b"".join((head, *parts, bytes(start - ends[-1])))
    return body + _directory(order, entries | {tag: _packed(order, values) for tag, values in numbers.items()}, start)


def _parts(data: bytes, layout: Layout, plane: int | None) -> list[bytes]:
    """The compressed bytes of each strip or tile of one plane, or of all."""
    rows = layout.tile[1] if layout.tile else layout.rows_per_strip
    expected = -(-layout.height // rows) * layout.across
    first, count = (0, expected * layout.planes) if plane is None else (plane * expected, expected)
    offsets = layout.offsets[first : first + count]
    if len(offsets) < count:
        raise RejectedImageError("broken", f"{len(layout.offsets)} parts of {expected * layout.planes}")
    parts = []
    for index, offset in enumerate(offsets, first):
        size = layout.counts[index] if index < len(layout.counts) else len(data) - offset
        if layout.compression == UNCOMPRESSED:  # What a writer says of the size may be wrong.
            below = layout.height - (index % expected // layout.across) * rows
            size = layout.unit_bytes * (rows if layout.tile else min(rows, below))
        if not 0 <= offset <= offset + size <= len(data):
            raise RejectedImageError("broken", "a part of the picture lies behind the end of the file")
        parts.append(data[offset : offset + size])
    return parts


def _packed(order: str, values: list[int]) -> _Entry:
    return _LONG, len(values), struct.pack(f"{order}{len(values)}I", *values)


def _directory(order: str, entries: dict[int, _Entry], start: int) -> bytes:
    """A classic directory at `start`, with the values of its tags behind it."""
    behind = start + 2 + 12 * len(entries) + 4
    table, values = struct.pack(order + "H", len(entries)), b""
    for tag, (kind, count, raw) in sorted(entries.items()):
        place = raw.ljust(4, b"\0")
        if len(raw) > 4:
            place = struct.pack(order + "I", behind + len(values))
            values += raw + bytes(len(raw) % 2)
        table += struct.pack(order + "HHI", tag, kind, count) + place
    return table + bytes(4) + values

"""Image files written sample by sample, for what no library writes: odd depths, planes, predictors, tags."""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_FIELDS = {"B": 1, "H": 3, "I": 4}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The file that Pillow writes of `image`."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def ramps(bands: int, largest: float, side: int = 32) -> NDArray[np.float64]:
    """`[side, side, bands]`, each band rising in another direction from 0 to at most `largest`."""
    y, x = np.mgrid[:side, :side] / (side - 1)
    return np.stack([x, y, (x + y) / 2, 1 - y * 0.8][:bands], axis=2) * largest


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(samples: NDArray[Any], depth: int, kind: int, chunks: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """A PNG of integers `[h, w, bands]` of `depth` bits, with `chunks` before its pixels."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + _packed(row.reshape(1, -1), depth) for row in samples)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    extra = b"".join(png_chunk(name, body) for name, body in chunks)
    picture = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + picture


def tiff(
    samples: NDArray[Any],
    bits: int,
    photometric: int,
    *,
    kind: int = 1,
    separate: bool = False,
    predictor: int = 1,
    deflate: bool = False,
    tile: int | None = None,
    rows_per_strip: int = 32,
    order: str = "<",
    tags: Mapping[int, tuple[str, Sequence[int]]] | None = None,
) -> bytes:
    """A TIFF of `samples` `[h, w, bands]`.

    Args:
        samples: integers, or floats where `kind` is 3.
        bits: of a sample.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette.
        kind: 1 unsigned, 2 signed, 3 float.
        separate: whether each band has a plane of its own.
        predictor: 1 none, 2 horizontal, 3 of floats.
        deflate: whether to compress.
        tile: side of tiles; None for strips.
        rows_per_strip: rows of a strip.
        order: `<` or `>`.
        tags: more tags, as letter of their type (B, H or I) and values.
    """
    height, width, bands = samples.shape
    parts = []
    for plane in np.split(samples, bands, axis=2) if separate else [samples]:
        if tile:
            plane = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
        across, down = (tile, tile) if tile else (plane.shape[1], rows_per_strip)
        for top in range(0, plane.shape[0], down):
            for left in range(0, plane.shape[1], across):
                part = _encoded_part(plane[top : top + down, left : left + across], bits, kind, predictor, order)
                parts.append(zlib.compress(part) if deflate else part)
    entries: dict[int, tuple[str, Sequence[int]]] = {
        256: ("H", [width]), 257: ("H", [height]), 258: ("H", [bits] * bands), 259: ("H", [8 if deflate else 1]),
        262: ("H", [photometric]), 277: ("H", [bands]), 284: ("H", [2 if separate else 1]),
        317: ("H", [predictor]), 339: ("H", [kind] * bands),
    }  # fmt: skip
    entries |= {322: ("H", [tile]), 323: ("H", [tile])} if tile else {278: ("H", [rows_per_strip])}
    entries[325 if tile else 279] = "I", [len(part) for part in parts]
    return _with_directory(parts, entries | dict(tags or {}), 324 if tile else 273, order)


def _encoded_part(part: NDArray[Any], bits: int, kind: int, predictor: int, order: str) -> bytes:
    rows, columns, bands = part.shape
    if bits not in (8, 16, 32, 64):
        return _packed(part.reshape(rows, -1), bits)
    letter = {1: "u", 2: "i", 3: "f"}[kind]
    values = part.astype(f"{letter}{bits // 8}")
    if predictor == 2:
        unsigned = values.view(f"u{bits // 8}").copy()
        unsigned[:, 1:] -= unsigned[:, :-1].copy()
        values = unsigned.view(values.dtype)
    if predictor == 3:
        big_endian = values.astype(f">f{bits // 8}").reshape(rows, columns * bands).view(np.uint8)
        planes = big_endian.reshape(rows, -1, bits // 8).transpose(0, 2, 1).reshape(rows, -1, bands).copy()
        planes[:, 1:] -= planes[:, :-1].copy()
        return planes.tobytes()
    return values.astype(values.dtype.newbyteorder("<" if order == "<" else ">")).tobytes()


def _packed(rows: NDArray[Any], bits: int) -> bytes:
    """Integers `[h, n]` in `bits` each, from the highest bit on; each row begins with a whole byte."""
    places = np.arange(bits - 1, -1, -1, dtype=np.uint64)
    single = (rows.astype(np.uint64)[..., None] >> places) & np.uint64(1)
    return np.packbits(single.astype(np.uint8).reshape(len(rows), -1), axis=1).tobytes()


def _with_directory(
    parts: Sequence[bytes], entries: dict[int, tuple[str, Sequence[int]]], places: int, order: str
) -> bytes:
    ends = np.cumsum([8, *map(len, parts)]).tolist()
    entries[places] = "I", ends[:-1]
    start = ends[-1] + ends[-1] % 2
    behind = start + 2 + 12 * len(entries) + 4
    table, values = struct.pack(order + "H", len(entries)), b""
    for tag, (letter, numbers) in sorted(entries.items()):
        raw = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        place = raw.ljust(4, b"\0")
        if len(raw) > 4:
            place = struct.pack(order + "I", behind + len(values))
            values += raw + bytes(len(raw) % 2)
        table += struct.pack(order + "HHI", tag, _FIELDS[letter], len(numbers)) + place
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    return head + b"".join(parts) + bytes(start - ends[-1]) + table + bytes(4) + values

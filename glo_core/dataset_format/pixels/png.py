"""PNG files: what their chunks say, and the picture alone for the decoder.

Only the chunks that make up the picture reach Pillow. So text, times, odd EXIF and profiles of any size cost nothing
and are no reason to reject. An animated PNG shows its default image.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glo_core.common.arrays import BoolArray
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.pixels import exif
from glo_core.dataset_format.pixels.color import MAX_PROFILE
from glo_core.dataset_format.pixels.pillow import Matches, open_picture, raster_of, with_transparent_color
from glo_core.dataset_format.pixels.raster import Raster, check_memory, check_size, require_size
from glo_core.dataset_format.pixels.samples import divided_by_257
from glo_core.dataset_format.rejection import RejectedImageError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PICTURE = frozenset({b"IHDR", b"IDAT"})
_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
"""Kinds of color, by their numbers in the header"""
_BYTES = {_GRAY: 1, _PALETTE: 1}
"""Of a pixel in Pillow's memory; of the other kinds four"""
_MODES = {_GRAY: "L", _RGB: "RGB", _GRAY_ALPHA: "LA", _RGB_ALPHA: "RGBA"}
"""Pillow's modes of 8 bits"""
_LOW_BYTES = "RGB;16L"
"""Pillow keeps the first of two bytes of a sample; read in the other order, it keeps the second"""


@dataclass
class _Chunks:
    header: bytes = b""
    palette: bytes = b""
    transparency: bytes = b""
    profile: bytes = b""
    exif: bytes = b""
    picture: list[memoryview] = field(default_factory=list)
    """The chunks that make up the picture, whole"""

    @property
    def kind(self) -> int:
        """The kind of color; -1 before the header."""
        return self.header[9] if len(self.header) > 9 else -1

    def fits(self, name: bytes, body: bytes) -> bool:
        """Whether a palette, or transparency, is the first one, and such that it counts before the pixels begin."""
        if name == b"PLTE":
            return self.kind == _PALETTE and not self.palette
        if self.transparency:
            return False
        if self.kind == _PALETTE:
            return len(body) <= len(self.palette) // 3
        return len(body) == {_GRAY: 2, _RGB: 6}.get(self.kind)


def open_png(data: bytes, policy: ResolvedDatasetConfig) -> Raster:
    """Decode a PNG.

    Raises:
        RejectedImageError: `broken` where a chunk of the picture is damaged, `truncated` where it ends too early.
    """
    chunks = _read_chunks(data, checked=not policy.allow_truncated)
    profile = chunks.profile
    if len(chunks.header) < 13:
        raise RejectedImageError("broken", "no header")
    width, height, depth, kind = struct.unpack_from(">IIBB", chunks.header)
    check_size(width, height, policy)
    pixel = 4.0 * (1 + (depth == 16 and kind == _RGB and bool(chunks.transparency)))
    pixel = _BYTES.get(kind, pixel) * (1 + (depth == 16 and kind == _GRAY))
    # The data are in memory twice: as the file, and as the chunks of the picture.
    check_memory(width, height, width * height * pixel + len(data) + sum(map(len, chunks.picture)), policy)
    image = None if policy.allow_truncated else _plain_image(chunks)
    if image is None:
        image = _opened(chunks, (width, height))
    turned = exif.orientation(chunks.exif)
    if image.mode == "I;16":

        def rows(first: int, last: int) -> Image.Image:
            return divided_by_257(_part(image, first, last))

        raster = Raster(image.size, rows, image.size, turned, profile)
    else:
        # Pillow keeps 16-bit gray with alpha as RGBA.
        raster = raster_of(image, policy, orientation=turned, profile=profile, gray=kind == _GRAY_ALPHA)
    if kind in (_GRAY, _RGB) and chunks.transparency:
        return with_transparent_color(raster, _transparent(image, chunks, depth), policy)
    return raster


def _opened(chunks: _Chunks, size: tuple[int, int]) -> Image.Image:
    """The picture as Pillow opens and loads it."""
    image = open_picture(_picture(chunks), "PNG")
    require_size(image.size, size)
    image.load()
    return image


def _plain_image(chunks: _Chunks) -> Image.Image | None:
    """The picture of 8 bits and no palette by Pillow's decoder of its bytes alone; None for others, and for damage.

    Opening a small file as a PNG takes Pillow longer than decoding it, and its chunks have been looked at already.
    What is damaged is opened all the same, since that says what is wrong.
    """
    if len(chunks.header) != 13:
        return None
    width, height, depth, kind, *methods = struct.unpack(">IIBBBBB", chunks.header)
    if depth != 8 or kind not in _MODES or any(methods):  # Interlaced, or compressed in a way that nobody knows
        return None
    compressed = b"".join([chunk[8:-4] for chunk in chunks.picture[1:]])
    try:
        return Image.frombytes(_MODES[kind], (width, height), compressed, "zip", _MODES[kind])
    except ValueError:
        return None


def _picture(chunks: _Chunks) -> bytes:
    return b"".join((_SIGNATURE, *chunks.picture))


# ---------------------------------------------------------------- chunks


def _read_chunks(data: bytes, checked: bool) -> _Chunks:
    chunks, has_pixels = _Chunks(), False
    for name, start, end in _walk(data):
        # The pixels are not copied: they may be as large as memory allows.
        body = b"" if name == b"IDAT" else data[start + 8 : end - 4]
        if name in (b"PLTE", b"tRNS") and (has_pixels or not chunks.fits(name, body)):
            continue
        has_pixels |= name == b"IDAT"
        if name in _PICTURE or (name in (b"PLTE", b"tRNS") and chunks.kind == _PALETTE):
            # Pillow would go by the last header, and nobody has checked that one.
            if (name == b"IHDR") == bool(chunks.picture):
                raise RejectedImageError("broken", "it does not begin with its only header")
            # Of a chunk that is cut short, the decoder says whether pixels are missing.
            whole = end <= len(data)
            if (
                checked
                and whole
                and zlib.crc32(memoryview(data)[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big")
            ):
                raise RejectedImageError("broken", f"chunk {name.decode()} is damaged")
            chunks.picture.append(memoryview(data)[start:end])
        if name == b"IHDR":
            chunks.header = body
        elif name == b"PLTE":
            chunks.palette = body
        elif name == b"tRNS":
            chunks.transparency = body
        elif name == b"iCCP":
            chunks.profile = _inflated(body)
        elif name == b"eXIf":
            chunks.exif = body
    return chunks


def _walk(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each chunk; the last one may end behind the data."""
    at = len(_SIGNATURE)
    while at + 8 <= len(data):
        name, end = data[at + 4 : at + 8], at + 12 + _number(data[at : at + 4])
        yield name, at, end
        if name == b"IEND":
            return
        at = end


def _number(four: bytes) -> int:
    return int.from_bytes(four, "big")


def _inflated(chunk: bytes) -> bytes:
    """The color profile in an iCCP chunk: a name, a zero, the method, and compressed bytes."""
    _, _, compressed = chunk.partition(b"\0")
    try:
        inflate = zlib.decompressobj()
        profile = inflate.decompress(compressed[1:], MAX_PROFILE)
    except zlib.error:
        return b""
    return profile if inflate.eof else b""


# ---------------------------------------------------------------- transparency


def _part(image: Image.Image, first: int, last: int) -> NDArray[Any]:
    """Rows of an image as an array `[h, w]` or `[h, w, bands]`."""
    return np.asarray(image.crop((0, first, image.width, last)))


def _transparent(image: Image.Image, chunks: _Chunks, depth: int) -> Matches:
    """Which pixels have the one transparent color, compared in all bits that the file has."""
    # Of the two bytes of each value only the bits of the file's depth count.
    values = np.frombuffer(chunks.transparency, ">u2") & (2**depth - 1)
    if image.mode == "RGB" and depth == 16:
        return _matches_deep(image, _picture(chunks), values)
    if image.mode == "RGB":
        return lambda first, last: (_part(image, first, last) == values).all(axis=2)
    # Pillow spreads 2 and 4 bits over 0 to 255.
    value = int(values[0]) if depth == 16 else int(values[0]) * 255 // (2**depth - 1)
    return lambda first, last: _part(image, first, last) == (bool(value) if image.mode == "1" else value)


def _matches_deep(image: Image.Image, picture: bytes, color: NDArray[Any]) -> Matches:
    low = open_picture(picture, "PNG")
    low.tile = [tile._replace(args=_LOW_BYTES) for tile in low.tile]
    low.load()

    def matches(first: int, last: int) -> BoolArray:
        high_equal = _part(image, first, last) == color >> 8
        low_equal = _part(low, first, last) == color & 255
        return (high_equal & low_equal).all(axis=2)

    return matches

"""Baseline and progressive JPEGs of any sampling of colors, which no library at hand writes."""

import io
import math
import struct
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_ZIGZAG = sorted(range(64), key=lambda at: (at // 8 + at % 8, (at % 8 if (at // 8 + at % 8) % 2 == 0 else at // 8)))
"""Places of the 64 coefficients of a block, in the order in which a scan holds them"""
Factors = Sequence[tuple[int, int]]
"""Of each component: horizontal and vertical sampling"""


def jpeg_with_sampling(image: Image.Image, factors: Factors, *, progressive: bool = False, restarts: int = 0) -> bytes:
    """A JPEG of `image` (RGB) with the sampling of `factors`.

    Args:
        image: RGB.
        factors: of Y, Cb and Cr.
        progressive: in scans of one component each; else in one scan of all.
        restarts: smallest units between two restart markers of the one scan; 0 for none.
    """
    planes = _planes(image, factors)
    grays = [_gray(plane, progressive) for plane in planes]
    head = b"\xff\xd8" + _segments(grays[0], (0xDB,))
    parts = [bytes([number, horizontal << 4 | vertical, 0]) for number, (horizontal, vertical) in enumerate(factors, 1)]
    frame = struct.pack(">BHHB", 8, image.height, image.width, len(parts)) + b"".join(parts)
    head += _segment(0xC2 if progressive else 0xC0, frame)
    if progressive:
        scans = [_of_component(gray, number) for number, gray in enumerate(grays, 1)]
        return head + b"".join(scans) + b"\xff\xd9"
    head += _segments(grays[0], (0xC4,)) + (_segment(0xDD, struct.pack(">H", restarts)) if restarts else b"")
    components = b"".join(bytes([number, 0]) for number in range(1, len(parts) + 1))
    head += _segment(0xDA, bytes([len(parts)]) + components + bytes([0, 63, 0]))
    return head + _scan(planes, factors, image.size, grays[0], restarts) + b"\xff\xd9"


def _planes(image: Image.Image, factors: Factors) -> list[Image.Image]:
    most = max(h for h, _ in factors), max(v for _, v in factors)
    return [
        plane.resize(
            (math.ceil(image.width * h / most[0]), math.ceil(image.height * v / most[1])), Image.Resampling.BOX
        )
        for plane, (h, v) in zip(image.convert("YCbCr").split(), factors, strict=True)
    ]


def _gray(plane: Image.Image, progressive: bool) -> bytes:
    buffer = io.BytesIO()
    plane.save(buffer, "JPEG", quality=85, progressive=progressive)
    return buffer.getvalue()


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def _walk(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and bytes of each segment; a scan's come with it."""
    at = 2
    while data[at + 1] != 0xD9:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:
            while data[end] != 0xFF or data[end + 1] == 0:
                end += 1
        yield data[at + 1], data[at:end]
        at = end


def _segments(data: bytes, markers: Sequence[int]) -> bytes:
    return b"".join(segment for marker, segment in _walk(data) if marker in markers)


def _of_component(gray: bytes, number: int) -> bytes:
    """The scans of a gray JPEG, with their tables, as those of component `number`: each is a picture of its own."""
    scans = b""
    for marker, segment in _walk(gray):
        if marker == 0xDA:
            scans += segment[:5] + bytes([number]) + segment[6:]
        elif marker == 0xC4:
            scans += segment
    return scans


def _scan(planes: Sequence[Image.Image], factors: Factors, size: tuple[int, int], gray: bytes, restarts: int) -> bytes:
    """The one scan of all components, in the tables of the baseline file `gray`."""
    most = max(h for h, _ in factors), max(v for _, v in factors)
    across, down = math.ceil(size[0] / 8 / most[0]), math.ceil(size[1] / 8 / most[1])
    codes, quantization = _codes(gray), _quantization(gray)
    blocks = [_blocks(plane, across * h, down * v, quantization) for plane, (h, v) in zip(planes, factors, strict=True)]
    scan, bits, last = b"", "", [0] * len(planes)
    for unit in range(across * down):
        if restarts and unit and unit % restarts == 0:
            scan += _stuffed(bits) + bytes([0xFF, 0xD0 + (unit // restarts - 1) % 8])
            bits, last = "", [0] * len(planes)
        for component, (h, v) in enumerate(factors):
            for y in range(unit // across * v, unit // across * v + v):
                for x in range(unit % across * h, unit % across * h + h):
                    block = blocks[component][y, x].tolist()
                    bits += _coded([block[0] - last[component], *block[1:]], codes)
                    last[component] = block[0]
    return scan + _stuffed(bits)


def _codes(gray: bytes) -> dict[tuple[int, int], str]:
    """Bits of each symbol by the table's class (0: DC, 1: AC) and the symbol."""
    codes = {}
    for marker, segment in _walk(gray):
        at = 4
        while marker == 0xC4 and at < len(segment):
            counts, symbol, code = segment[at + 1 : at + 17], at + 17, 0
            for length, count in enumerate(counts, 1):
                for _ in range(count):
                    codes[segment[at] >> 4, segment[symbol]] = f"{code:0{length}b}"
                    code, symbol = code + 1, symbol + 1
                code <<= 1
            at = symbol
    return codes


def _quantization(gray: bytes) -> NDArray[np.int64]:
    table = np.zeros(64, np.int64)
    table[_ZIGZAG] = list(_segments(gray, (0xDB,))[5:69])
    return table.reshape(8, 8)


def _blocks(plane: Image.Image, across: int, down: int, quantization: NDArray[np.int64]) -> NDArray[np.int64]:
    """Quantized coefficients in zigzag order, `[down, across, 64]`; the plane's last pixels are repeated."""
    values = np.asarray(plane, np.float64) - 128
    values = np.pad(values, ((0, 8 * down - plane.height), (0, 8 * across - plane.width)), mode="edge")
    k, n = np.mgrid[:8, :8]
    cosines = np.cos((2 * n + 1) * k * np.pi / 16) * np.where(k == 0, np.sqrt(1 / 8), 0.5)
    parts = values.reshape(down, 8, across, 8).transpose(0, 2, 1, 3)
    return (cosines @ parts @ cosines.T / quantization).round().astype(np.int64).reshape(down, across, 64)[..., _ZIGZAG]


def _coded(block: Sequence[int], codes: dict[tuple[int, int], str]) -> str:
    size, bits = _value(block[0])
    text, zeros = codes[0, size] + bits, 0
    for value in block[1:]:
        if value == 0:
            zeros += 1
            continue
        size, bits = _value(value)
        text += codes[1, 0xF0] * (zeros // 16) + codes[1, zeros % 16 << 4 | size] + bits
        zeros = 0
    return text + (codes[1, 0] if zeros else "")


def _value(value: int) -> tuple[int, str]:
    """The number of bits of a value, and the bits."""
    size = abs(value).bit_length()
    return size, f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else ""


def _stuffed(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")

"""What the scans of a JPEG tell beyond libjpeg's warnings: padding, zeros in their midst, scans that never came."""

import itertools
import re
from collections.abc import Iterator, Sequence

_SOS, _EOI, _DHT = 0xDA, 0xD9, 0xC4
_END_OF_BLOCK = 0
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""What ends a scan: a marker that is neither a stuffed byte nor a restart."""
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_PIECE_END = re.compile(rb"\xff+[^\x00\xff]")
"""What ends a piece of a scan: a marker, with the bytes that fill up to it"""
_RESTARTS = range(0xD0, 0xD8)
_OTHER_BYTES = bytes(range(1, 0xFF))
"""Bytes that are no marker, in which a decoder reads blocks of any kind"""
_REPLACED = 32
"""Bytes at the end of a scan, which hold at least a part of its last blocks"""
_COEFFICIENTS = (1 << 64) - 1


def only_padding(warning: str, data: bytes, scan: int) -> bool:
    """Whether libjpeg's `warning` speaks of bytes before the end mark that are all zero, or all ones.

    Cameras fill a scan up in this way, and every pixel is there. Other bytes that are left over show that the decoder
    lost its way: somewhere before them the scan is damaged.
    """
    match = _EXTRANEOUS.search(warning)
    if match is None:
        return False
    end = next((at for at, marker in _markers(data, scan) if marker == _EOI), len(data))
    padding = set(data[end - int(match[1]) : end])
    return padding in ({0}, {0xFF}, {0, 0xFF})


def is_complete(data: bytes, scan: int, components: Sequence[int]) -> bool:
    """Whether the scans from `scan` on bring each coefficient of all `components` to its last bit."""
    missing = dict.fromkeys(components, _COEFFICIENTS)
    for at, marker in _markers(data, scan):
        if marker == _EOI:
            break
        count = data[at + 4] if at + 4 < len(data) else 0
        header = data[at + 5 : at + 8 + 2 * count]
        if marker != _SOS or len(header) < 2 * count + 3:
            continue
        first, last, bits = header[2 * count : 2 * count + 3]
        if bits & 15 == 0:  # The scan ends at bit 0.
            covered = ((1 << (last + 1)) - 1) & ~((1 << first) - 1)
            for name in header[: 2 * count : 2]:
                missing[name] = missing.get(name, 0) & ~covered
    return not any(missing.values())


def _markers(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Place and code of each marker from `at` on, where the first one lies."""
    while (match := _MARKER.search(data, at)) is not None:
        yield match.start(), data[match.start() + 1]
        if data[match.start() + 1] == _EOI:
            return
        # A segment is skipped: its bytes may look like markers.
        at = match.start() + 2 + int.from_bytes(data[match.start() + 2 : match.start() + 4], "big")


def with_bytes_added(stream: bytes, scan: int) -> bytes:
    """`stream` with more bytes behind each piece of its scans, from `scan` on.

    A decoder skips them behind a piece that is whole. Where a piece ends too early it takes them for blocks.
    """
    ends = [end for _, end in _pieces(stream, scan)]
    added = memoryview(_OTHER_BYTES)[: (len(stream) + (1 << 20)) // max(len(ends), 1)]
    parts, last = list[bytes | memoryview](), 0
    for end in ends:
        parts += memoryview(stream)[last:end], added
        last = end
    return b"".join((*parts, memoryview(stream)[last:]))


def with_last_bytes_replaced(stream: bytes, scan: int) -> bytes | None:
    """`stream` with other bytes at the end of its only piece, before padding; None for several, or a short one.

    A decoder that lost its way, and so did not get there, shows the same picture.
    """
    pieces = list(itertools.islice(_pieces(stream, scan), 2))
    if len(pieces) != 1:
        return None
    start, end = pieces[0]
    end = start + len(stream[start:end].rstrip(b"\0\xff"))
    first = end - _REPLACED
    first -= stream[first - 1 : first] == b"\xff"  # A stuffed byte goes with the one before it.
    if first <= start:
        return None
    return b"".join((memoryview(stream)[:first], _OTHER_BYTES[: end - first], memoryview(stream)[end:]))


def _pieces(stream: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Start and end of each piece of entropy-coded bytes: a scan, or what lies between two restart markers."""
    start = -1
    while (match := _PIECE_END.search(stream, at)) is not None:
        at, marker = match.end(), stream[match.end() - 1]
        if start >= 0:
            yield start, match.start()
        if marker == _EOI:
            return
        if marker not in _RESTARTS:
            at += int.from_bytes(stream[at : at + 2], "big")
        start = at if marker == _SOS or marker in _RESTARTS else -1


def has_zeroed_part(data: bytes, scan: int, tables: Sequence[bytes]) -> bool:
    """Whether a part of the only, sequential scan was overwritten with zeros, as lost blocks of a disk or download are.

    Zeros are valid codes, and a decoder often finds its way again behind them without a warning. Where the code of
    zeros is no end of a block, a long run of them stands for a block of 63 equal coefficients, which no picture has.
    """
    codes = [code for segment in tables if segment[1] == _DHT for code in _zero_codes(segment[4:])]
    # A coefficient takes the bits of its code and, by the symbol's lower half, those of its value.
    blocks = [63 * (length + (symbol & 15)) for symbol, length in codes if symbol != _END_OF_BLOCK]
    if not blocks:
        return False
    # So many zero bytes hold one such block whole, wherever they begin.
    start = data.find(bytes(2 * max(blocks) // 8 + 8), scan)
    if start < 0:
        return False
    end = data.find(b"\xff\xd9", scan)
    return bool(data[start : end if end >= 0 else len(data)].strip(b"\0"))


def _zero_codes(tables: bytes) -> Iterator[tuple[int, int]]:
    """Symbol and length in bits of the code that is all zeros, of each table of AC coefficients in a segment."""
    while len(tables) >= 17:
        counts = tables[1:17]
        if tables[0] >> 4 == 1 and len(tables) > 17 and any(counts):
            yield tables[17], next(length for length, count in enumerate(counts, 1) if count)
        tables = tables[17 + sum(counts) :]

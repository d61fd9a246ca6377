"""What the scans of a JPEG tell beyond libjpeg's warnings: bytes that only pad, and scans that never came."""

import re
from collections.abc import Iterator, Sequence

_SOS, _EOI = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""What ends a scan: a marker that is neither a stuffed byte nor a restart."""
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
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

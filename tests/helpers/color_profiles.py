"""Color profiles laid out by hand (ICC.1:2001-04): of Adobe RGB's primaries, and of gray."""

from collections.abc import Mapping

_WHITE = (0.9642, 1.0, 0.8249)


def _fixed(*values: float) -> bytes:
    return b"".join(round(value * 65536).to_bytes(4, "big", signed=True) for value in values)


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*values)


def _gamma(exponent: float) -> bytes:
    return b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(exponent * 256).to_bytes(2, "big") + bytes(2)


def adobe_rgb(gamma: float = 2.2) -> bytes:
    """A matrix profile of Adobe RGB's primaries (1998) and a gamma."""
    primaries = {
        b"rXYZ": _xyz(0.60974, 0.31111, 0.01947),
        b"gXYZ": _xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": _xyz(0.14919, 0.06322, 0.74457),
    }
    return _profile(b"RGB ", primaries | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(gamma)))


def gray(gamma: float) -> bytes:
    """A profile of gray with a gamma; its name says sRGB, which it is not."""
    return _profile(b"GRAY", {b"kTRC": _gamma(gamma)})


def _profile(space: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    text = b"desc" + bytes(4) + (5).to_bytes(4, "big") + b"sRGB\0" + bytes(79)
    tags = {b"desc": text, b"cprt": b"text" + bytes(4) + b"none", b"wtpt": _xyz(*_WHITE), **tags}
    start = 128 + 4 + 12 * len(tags)
    table, body = len(tags).to_bytes(4, "big"), b""
    for name, data in tags.items():
        table += name + (start + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += data + bytes(-len(data) % 4)
    size = start + len(body)
    header = size.to_bytes(4, "big") + b"none" + (0x02100000).to_bytes(4, "big") + b"mntr" + space + b"XYZ "
    header += bytes(12) + b"acsp" + bytes(28) + _fixed(*_WHITE) + bytes(48)
    return header + table + body

"""JPEG files: their segments, and their pixels as libjpeg-turbo decodes them, with each of its warnings heard."""

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from glo_core.common.arrays import UInt8Array
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.pixels import color, exif
from glo_core.dataset_format.pixels.jpeg_scans import (
    has_zeroed_part,
    is_complete,
    only_padding,
    with_bytes_added,
    with_last_bytes_replaced,
)
from glo_core.dataset_format.pixels.pillow import open_picture
from glo_core.dataset_format.pixels.raster import Raster, check_memory, check_size, require_size
from glo_core.dataset_format.rejection import RejectedImageError

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_SOS, _COM, _APP0, _APP1, _APP2, _APP14, _APP15 = 0xDA, 0xFE, 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SEQUENTIAL, _PROGRESSIVE, _ARITHMETIC = frozenset({0xC0, 0xC1}), frozenset({0xC2, 0xCA}), frozenset(range(0xC9, 0xD0))
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_MAX_SCANS = 200
"""A file of a camera has at most a dozen; a thousand of them over a large image take hours"""
_SCALES = (8, 4, 2)


@dataclass
class _Frame:
    """What the segments before the first scan say."""

    kind: int = 0
    """The marker of the frame header: baseline, progressive, ..."""
    width: int = 0
    height: int = 0
    sampling: tuple[int, ...] = ()
    """Blocks of each component in the smallest unit, horizontal times vertical"""
    components: tuple[int, ...] = ()
    """Names of the components"""
    exif: bytes = b""
    profile: dict[int, bytes] = field(default_factory=dict)
    """Pieces of the color profile by their number"""
    jfif: bytes = b""
    """JFIF's segment, where the file has one"""
    adobe: int | None = None
    """Adobe's color transform; None without its segment"""
    tables: list[bytes] = field(default_factory=list)
    """The segments that decoding needs, in their order"""
    scan: int = 0
    """Where the first scan begins"""


def open_jpeg(data: bytes, policy: ResolvedDatasetConfig) -> Raster:
    """Decode a JPEG, at 1/2, 1/4 or 1/8 where the policy allows it and enough pixels remain.

    Raises:
        RejectedImageError: `broken` or `truncated` where any part of its scans is damaged or missing.
    """
    frame = _read_segments(data)
    width, height = frame.width, frame.height
    check_size(width, height, policy)
    scale = _scale(width, height, policy)
    small = -(-width // scale), -(-height // scale)
    mode = _mode(frame, policy)
    bands = {"GRAY": 1, "RGB": 3, "CMYK": 4}[mode]
    blocks = width * height / 64 * sum(frame.sampling) / max(frame.sampling)
    coefficients = 128 * blocks if _buffered(frame, data) else 0
    check_memory(*small, small[0] * small[1] * bands + coefficients, policy)
    # A block takes a bit at least: a header that promises more than the file can hold costs no time.
    if not policy.allow_truncated and frame.kind not in _ARITHMETIC and 8 * len(data) < width // 8 * (height // 8):
        raise RejectedImageError("truncated", f"{len(data)} bytes for {width} x {height} pixels")
    if _buffered(frame, data) and data.count(b"\xff\xda", frame.scan) > _MAX_SCANS:
        raise RejectedImageError("broken", f"more than {_MAX_SCANS} scans")
    pixels = _decode(frame, data, mode, scale, policy)
    require_size((pixels.shape[1], pixels.shape[0]), small)
    inverted = mode == "CMYK" and frame.adobe is not None
    return Raster(
        size=(width, height),
        rows=lambda first, last: _image(pixels[first:last], mode, inverted),
        decoded=(pixels.shape[1], pixels.shape[0]),
        orientation=exif.orientation(frame.exif),
        profile=_profile(frame),
        shrink=float(scale),
    )


# ---------------------------------------------------------------- segments


def _read_segments(data: bytes) -> _Frame:
    frame, at = _Frame(), 2
    while True:
        at = data.find(b"\xff", at)
        while at >= 0 and data[at + 1 : at + 2] == b"\xff":  # Fill bytes
            at += 1
        if at < 0 or at + 4 > len(data):
            raise RejectedImageError("truncated", "no scan")
        marker = data[at + 1]
        if marker == 0 or marker in _WITHOUT_LENGTH:
            at += 2
            continue
        if marker == _EOI[1]:
            raise RejectedImageError("broken", "no scan")
        if marker == _SOS:
            frame.scan = at
            break
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2:
            raise RejectedImageError("broken", f"a segment of {length} bytes")
        end = at + 2 + length
        _read_segment(frame, marker, data[at:end])
        at = end
    if not frame.kind:
        raise RejectedImageError("broken", "no frame header")
    return frame


def _read_segment(frame: _Frame, marker: int, segment: bytes) -> None:
    body = segment[4:]
    if marker in _FRAMES:
        _read_frame_header(frame, marker, body)
        frame.tables.append(segment)
    elif marker == _APP1 and body.startswith(b"Exif\0") and not frame.exif:
        frame.exif = body
    elif marker == _APP2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
        frame.profile.setdefault(body[12], body[14:])
    elif marker == _APP0 and body.startswith(b"JFIF\0"):
        frame.jfif = _JFIF
    elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
        frame.adobe = body[11]
    elif not _APP0 <= marker <= _APP15 and marker != _COM:
        frame.tables.append(segment)


def _read_frame_header(frame: _Frame, marker: int, body: bytes) -> None:
    try:
        _, height, width, count = struct.unpack_from(">BHHB", body)
        parts = [struct.unpack_from(">BB", body, 6 + 3 * part) for part in range(count)]
    except struct.error:
        raise RejectedImageError("broken", "the frame header is cut short") from None
    frame.kind, frame.width, frame.height = marker, width, height
    frame.components = tuple(name for name, _ in parts)
    frame.sampling = tuple((factors >> 4) * (factors & 15) or 1 for _, factors in parts)
    if len(parts) not in (1, 3, 4):
        raise RejectedImageError("broken", f"{len(parts)} color components")


def _profile(frame: _Frame) -> bytes:
    """The pieces of the profile in their order; b"" where one is missing."""
    pieces = frame.profile
    whole = pieces.keys() == set(range(1, len(pieces) + 1))
    return b"".join(pieces[number] for number in sorted(pieces)) if whole else b""


# ---------------------------------------------------------------- decoding


def _scale(width: int, height: int, policy: ResolvedDatasetConfig) -> int:
    """By how much libjpeg reduces: 1, 2, 4 or 8, while the square still covers the resolution."""
    side = min(width, height, policy.tight_crop or width)
    if not policy.draft:
        return 1
    least = max(policy.resolution * width // side, 1), max(policy.resolution * height // side, 1)
    reduction = min(width // least[0], height // least[1])
    return next((scale for scale in _SCALES if reduction >= scale), 1)


def _mode(frame: _Frame, policy: ResolvedDatasetConfig) -> str:
    if len(frame.components) == 4:
        return "CMYK"
    if len(frame.components) == 1:
        return "GRAY"
    gray = policy.channels == 1 and color.transform_of(_profile(frame), "RGB", policy) is None
    return "GRAY" if gray else "RGB"


def _decode(frame: _Frame, data: bytes, mode: str, scale: int, policy: ResolvedDatasetConfig) -> UInt8Array:
    """The pixels, uint8 `[h, w, bands]`, reduced by `scale`."""
    # What is no table is left out: metadata are no reason to reject. A second end mark makes up for a missing one.
    head = b"".join((_SOI, frame.jfif, _adobe(frame), *frame.tables))
    stream = b"".join((head, memoryview(data)[frame.scan :], _EOI))

    strict, several = not policy.allow_truncated, _buffered(frame, data)
    try:
        pixels = _libjpeg(frame, stream, mode, scale, strict)
    except RejectedImageError as error:
        if not strict or not only_padding(error.detail, data, frame.scan):
            raise
        pixels = _libjpeg(frame, stream, mode, scale, strict=False)
    except _UnnamedSamplingError:
        by_pillow = functools.partial(_by_pillow, mode=mode, size=(frame.width, frame.height), scale=scale)
        pixels = by_pillow(stream)
        if strict:
            _require_no_damage(pixels, stream, len(head), by_pillow)
    if strict and frame.kind in _SEQUENTIAL and not several and has_zeroed_part(data, frame.scan, frame.tables):
        raise RejectedImageError("broken", "zeros in the midst of a scan")
    if strict and several and not is_complete(data, frame.scan, frame.components):
        raise RejectedImageError("truncated", "scans are missing")
    return pixels


class _UnnamedSamplingError(Exception):
    """TurboJPEG has no name for the way in which a file's colors are sampled."""


def _libjpeg(frame: _Frame, stream: bytes, mode: str, scale: int, strict: bool) -> UInt8Array:
    width, height = -(-frame.width // scale), -(-frame.height // scale)
    try:
        pixels = simplejpeg.decode_jpeg(stream, mode, min_width=width, min_height=height, strict=strict)
    except ValueError as error:  # libjpeg's errors and, if strict, its warnings
        if "subsampling level" in str(error):
            raise _UnnamedSamplingError from None
        raise RejectedImageError("truncated" if "remature end" in str(error) else "broken", str(error)) from None
    return pixels


def _by_pillow(stream: bytes, mode: str, size: tuple[int, int], scale: int) -> UInt8Array:
    """The pixels of a file whose colors are sampled in a way that TurboJPEG has no name for."""
    image = open_picture(stream, "JPEG")
    assert isinstance(image, JpegImageFile)
    require_size(image.size, size)
    image.draft("L" if mode == "GRAY" else "RGB", (size[0] // scale, size[1] // scale))
    image.load()
    pixels = np.asarray(image)
    # Pillow takes every file for one of Adobe's, whose CMYK is inverted.
    return 255 - pixels if mode == "CMYK" else pixels.reshape(*pixels.shape[:2], -1)


def _require_no_damage(pixels: UInt8Array, stream: bytes, scan: int, decoded: Callable[[bytes], UInt8Array]) -> None:
    """Tell damage by what other bytes show: Pillow hears none of libjpeg's warnings.

    Args:
        pixels: `decoded(stream)`.
        scan: where the first scan begins in `stream`.
        decoded: the pixels of a stream.
    """
    if not np.array_equal(decoded(with_bytes_added(stream, scan)), pixels):
        raise RejectedImageError("truncated", "a part of a scan ends too early")
    replaced = with_last_bytes_replaced(stream, scan)
    if replaced is not None and np.array_equal(decoded(replaced), pixels):
        raise RejectedImageError("broken", "bytes of a scan are left over")


def _buffered(frame: _Frame, data: bytes) -> bool:
    """Whether the image comes in several scans, so that libjpeg holds all coefficients in memory."""
    return frame.kind in _PROGRESSIVE or data[frame.scan + 4] < len(frame.components)


def _adobe(frame: _Frame) -> bytes:
    """Adobe's segment, which tells the color space; an unknown transform becomes the usual one."""
    if frame.adobe is None:
        return b""
    usual = 2 if len(frame.components) == 4 else 1
    transform = frame.adobe if frame.adobe in (0, 1, 2) else usual
    return b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])


def _image(pixels: UInt8Array, mode: str, inverted: bool) -> Image.Image:
    """An image of `pixels`, uint8 `[h, w, bands]`; Adobe's files hold CMYK inverted."""
    name = "L" if mode == "GRAY" else mode
    raw_mode = "CMYK;I" if inverted else name
    return Image.frombytes(name, (pixels.shape[1], pixels.shape[0]), np.ascontiguousarray(pixels), "raw", raw_mode)

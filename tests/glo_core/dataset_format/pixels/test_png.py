"""Tests of PNG files: what is decoded without Pillow's own look at the file is what Pillow shows."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import decode
from glo_core.dataset_format.rejection import RejectedImageError

KINDS = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(mode: str, rows: bytes, *, side: int = 16, pieces: int = 1, methods: bytes = b"\0\0\0") -> bytes:
    """A square file of `side` with the filtered `rows`, in as many IDAT chunks as `pieces`."""
    stream = zlib.compress(rows)
    step = -(-len(stream) // pieces)
    body = b"".join(chunk(b"IDAT", stream[at : at + step]) for at in range(0, len(stream), step))
    header = struct.pack(">IIBB", side, side, 8, KINDS[mode]) + methods
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def rows_of(mode: str, filters: list[int], side: int = 16) -> bytes:
    """Rows of random bytes, each with its filter."""
    random = np.random.default_rng(7)
    width = side * len(mode)
    return b"".join(bytes([filters[row % len(filters)]]) + random.bytes(width) for row in range(side))


def policy(mode: str) -> ResolvedDatasetConfig:
    return ResolvedDatasetConfig(resolution=16, channels=1 if mode[0] == "L" else 3, background="black")


@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize("filters", [[0], [1], [2], [3], [4], [0, 1, 2, 3, 4]], ids=str)
@pytest.mark.parametrize("pieces", [1, 5])
def test_every_filter_and_kind_of_color_is_what_pillow_shows(mode: str, filters: list[int], pieces: int) -> None:
    data = png(mode, rows_of(mode, filters), pieces=pieces)
    with Image.open(io.BytesIO(data)) as image:
        colors = image.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", colors.size, "black"), colors).convert(policy(mode).mode)
    pixels = decode(data, policy(mode)).pixels.astype(int)
    assert abs(pixels - np.asarray(expected).reshape(pixels.shape)).max() <= (1 if "A" in mode else 0)


@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_file_that_is_cut_short_is_rejected(mode: str, share: float) -> None:
    data = png(mode, rows_of(mode, [4]))
    with pytest.raises(RejectedImageError) as rejection:
        decode(data[: int(share * len(data))], policy(mode))
    assert rejection.value.reason == "truncated"


@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize(
    "data",
    [
        lambda mode: png(mode, rows_of(mode, [9])),
        lambda mode: png(mode, rows_of(mode, [0])[: 5 * 16 + 2]),
        lambda mode: png(mode, rows_of(mode, [0]), methods=b"\0\1\0"),
    ],
    ids=["unknown filter", "too few rows", "unknown filter method"],
)
def test_a_picture_that_is_damaged_within_its_chunks_is_judged_as_pillow_judges_it(mode: str, data: object) -> None:
    assert callable(data)
    content = data(mode)
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.load()
    except (OSError, SyntaxError):
        with pytest.raises(RejectedImageError):
            decode(content, policy(mode))
    else:
        assert decode(content, policy(mode)).width == 16

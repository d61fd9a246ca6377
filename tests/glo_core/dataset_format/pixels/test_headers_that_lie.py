"""Files whose header is not the one that a decoder goes by: what was checked is what is decoded."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import decode
from glo_core.dataset_format.rejection import RejectedImageError
from tests.helpers.encode_images import png_chunk, tiff

POLICY = ResolvedDatasetConfig(resolution=8, channels=3)
LENIENT = ResolvedDatasetConfig(resolution=8, channels=3, allow_truncated=True)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def header(width: int, height: int, kind: int = 2) -> bytes:
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))


def rejection(data: bytes, policy: ResolvedDatasetConfig = POLICY) -> str:
    with pytest.raises(RejectedImageError) as error:
        decode(data, policy)
    return str(error.value)


@pytest.mark.parametrize("policy", [POLICY, LENIENT])
@pytest.mark.parametrize("second", [header(40, 30), header(10, 10), header(40, 30, kind=0), png_chunk(b"IHDR", b"")])
def test_a_second_header_of_a_png_is_broken(second: bytes, policy: ResolvedDatasetConfig) -> None:
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(30 * 121)))
    end = png_chunk(b"IEND", b"")
    for chunks in (
        [header(10, 10), second, pixels],
        [header(10, 10), pixels, second],
        [second, header(10, 10), pixels],
    ):
        assert rejection(SIGNATURE + b"".join(chunks) + end, policy).startswith("broken: ")


def test_pixels_before_the_header_of_a_png_are_broken() -> None:
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(10 * 31)))
    data = SIGNATURE + pixels + header(10, 10) + pixels + png_chunk(b"IEND", b"")
    assert rejection(data).startswith("broken: ")


def test_of_a_width_that_is_stated_twice_in_a_tiff_the_checked_one_is_decoded() -> None:
    samples = np.full((16, 16, 1), 128)
    data = tiff(samples, 8, 1)
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entries = data[start + 2 : start + 2 + 12 * count]
    for compression in (1, 6):  # 6 is the JPEG that is decoded with all tags of its file.
        changed = bytearray(entries)
        for at in range(0, len(changed), 12):
            if struct.unpack_from("<H", changed, at)[0] == 259:
                struct.pack_into("<HII", changed, at + 2, 4, 1, compression)
        twice = struct.pack("<HHII", 256, 4, 1, 20_000) + struct.pack("<HHII", 257, 4, 1, 20_000)
        directory = struct.pack("<H", count + 2) + bytes(changed) + twice + bytes(4)
        moved = data[:4] + struct.pack("<I", len(data)) + data[8:] + directory
        if compression == 1:
            assert decode(moved, POLICY).pixels.max() == 128
        else:
            assert rejection(moved).startswith("broken: ")


def test_of_a_tag_that_claims_many_strips_only_those_of_the_picture_are_read() -> None:
    many = 1_000_000
    data = tiff(np.full((16, 16, 1), 128), 8, 1, tags={279: ("I", [256] * many)})
    tracemalloc.start()
    shown = decode(data, POLICY).pixels
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert shown.max() == 128
    assert peak < 4 * many

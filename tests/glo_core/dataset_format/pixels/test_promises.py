"""What `docs/preprocessing.md` promises of pixels, beyond what libvips shows."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import decode
from glo_core.dataset_format.pixels import raster
from glo_core.dataset_format.pixels.raster import MAX_BYTES
from glo_core.dataset_format.rejection import RejectedImageError
from tests.helpers.color_profiles import adobe_rgb
from tests.helpers.encode_images import encoded, png, png_chunk, ramps, tiff

POLICY = ResolvedDatasetConfig(resolution=32, channels=3)
RISING = ramps(1, 255)[..., 0]


def row(data: bytes) -> np.ndarray:
    """Red of the middle row, int `[32]`."""
    return decode(data, POLICY).pixels[16, :, 0].astype(int)


# ---------------------------------------------------------------- depth


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("bits", "largest"), [(16, 1.0), (32, 1.0), (64, 1.0), (32, 255.0), (64, 255.0), (32, 65535.0)]
)
@pytest.mark.parametrize("photometric", [0, 1, 2])
def test_floats_of_every_range_give_one_picture(order: str, bits: int, largest: float, photometric: int) -> None:
    bands = 3 if photometric == 2 else 1
    samples = np.repeat(ramps(1, largest), bands, axis=2)
    samples[0, :3, 0] = np.nan, np.inf, -np.inf
    expected = RISING[16][::-1] if photometric == 0 else RISING[16]
    assert abs(row(tiff(samples, bits, photometric, kind=3, order=order)) - expected).max() <= 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [2, 4, 6, 8, 10, 12, 14, 16, 24, 32, 64])
@pytest.mark.parametrize("photometric", [0, 1])
def test_integers_of_every_depth_give_one_picture(order: str, bits: int, photometric: int) -> None:
    levels = [[[min(int(value * 2**bits), 2**bits - 1)] for value in line] for line in ramps(1, 1)[..., 0].tolist()]
    samples = np.array(levels, np.uint64)
    expected = RISING[16][::-1] if photometric == 0 else RISING[16]
    step = 255 / (2**bits - 1)
    assert abs(row(tiff(samples, bits, photometric, order=order)) - expected).max() <= step + 1


@pytest.mark.parametrize("largest", [255, 65535, 2**31 - 1])
def test_signed_integers_of_every_range_give_one_picture(largest: int) -> None:
    samples = np.floor(ramps(1, largest)).astype(np.int64)
    samples[0] = -7
    assert abs(row(tiff(samples, 32, 1, kind=2)) - RISING[16]).max() <= 1
    assert decode(tiff(samples, 32, 1, kind=2), POLICY).pixels[0].max() == 0


def test_a_dark_picture_of_16_bits_stays_dark() -> None:
    samples = np.floor(ramps(1, 255)).astype(np.int64)
    assert row(png(samples, 16, 0)).max() <= 1
    assert row(tiff(samples, 16, 1)).max() <= 1


def test_bit_fields_of_a_bmp_lie_where_its_header_says() -> None:
    levels = np.floor(ramps(3, 15)).astype(np.uint32)
    values = levels[..., 0] << 8 | levels[..., 1] << 4 | levels[..., 2] | 0xF000
    for alpha in (0, 0xF000):
        pixels = values.astype("<u2")[::-1].tobytes()
        header = struct.pack("<IiiHHIIiiII", 124, 32, 32, 1, 16, 3, len(pixels), 0, 0, 0, 0)
        header = (header + struct.pack("<IIII", 0xF00, 0xF0, 0xF, alpha)).ljust(124, b"\0")
        data = b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels
        assert abs(decode(data, POLICY).pixels.astype(int) - ramps(3, 255)).max() <= 18


# ---------------------------------------------------------------- metadata


PICTURE = np.floor(ramps(3, 255)).astype(np.int64)
MANY = zlib.compress(bytes(2 * 2**20))
CHUNKS: dict[str, list[tuple[bytes, bytes]]] = {
    "a long text": [(b"tEXt", b"comment\0" + b"a" * (2 * 2**20))],
    "a text that inflates": [(b"zTXt", b"comment\0\0" + MANY)],
    "an international text": [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + MANY)],
    "a text named exif": [
        (b"tEXt", b"exif\0no EXIF"),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"no hex")),
    ],
    "a malformed eXIf": [(b"eXIf", b"MM\0*\xff\xff\xff\xff")],
    "an empty eXIf": [(b"eXIf", b"")],
    "a profile that inflates": [(b"iCCP", b"large\0\0" + zlib.compress(bytes(40 * 2**20)))],
    "a broken profile": [(b"iCCP", b"broken\0\0" + MANY[:20])],
    "odd sizes": [(b"pHYs", b"\0"), (b"sRGB", b""), (b"gAMA", b"\0"), (b"cHRM", b""), (b"tIME", b"1")],
    "a cut animation": [(b"acTL", b"\0\0"), (b"fcTL", b"")],
}


@pytest.mark.parametrize("name", CHUNKS)
def test_what_a_png_says_beside_its_picture_does_not_matter(name: str) -> None:
    np.testing.assert_array_equal(
        decode(png(PICTURE, 8, 2, CHUNKS[name]), POLICY).pixels, decode(png(PICTURE, 8, 2), POLICY).pixels
    )


def test_a_profile_above_one_mebibyte_counts() -> None:
    profile = adobe_rgb().ljust(3 * 2**20, b"\0")
    profile = len(profile).to_bytes(4, "big") + profile[4:]
    small = decode(png(PICTURE, 8, 2, [(b"iCCP", b"small\0\0" + zlib.compress(adobe_rgb()))]), POLICY).pixels
    large = decode(png(PICTURE, 8, 2, [(b"iCCP", b"large\0\0" + zlib.compress(profile))]), POLICY).pixels
    np.testing.assert_array_equal(small, large)
    assert abs(small.astype(int) - decode(png(PICTURE, 8, 2), POLICY).pixels).max() > 5


def test_a_png_without_its_end_is_whole_and_a_damaged_one_is_not() -> None:
    data = png(PICTURE, 8, 2)
    whole = decode(data, POLICY).pixels
    for missing in (4, 12, 14):
        np.testing.assert_array_equal(decode(data[:-missing], POLICY).pixels, whole)
    with pytest.raises(RejectedImageError, match=r"^truncated"):
        decode(data[:-60], POLICY)
    at = data.index(b"IDAT") + 40
    with pytest.raises(RejectedImageError, match=r"^broken: chunk IDAT is damaged"):
        decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], POLICY)


@pytest.mark.parametrize(
    "tags", [{282: ("H", [1])}, {270: ("I", [2**31])}, {33432: ("B", [255] * 9)}, {700: ("B", [1])}]
)
def test_odd_tags_of_a_tiff_do_not_matter(tags: dict[int, tuple[str, Sequence[int]]]) -> None:
    np.testing.assert_array_equal(
        decode(tiff(PICTURE, 8, 2, tags=tags), POLICY).pixels, decode(tiff(PICTURE, 8, 2), POLICY).pixels
    )


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "TIFF"])
def test_an_orientation_that_is_none_leaves_the_picture_upright(kind: str) -> None:
    image = Image.fromarray(PICTURE.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 9
    np.testing.assert_array_equal(
        decode(encoded(image, kind, exif=exif), POLICY).pixels, decode(encoded(image, kind), POLICY).pixels
    )


# ---------------------------------------------------------------- memory


def header_only(width: int, height: int, depth: int, kind: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(99)))


def test_pixels_are_bounded_by_the_memory_that_they_take() -> None:
    many = ResolvedDatasetConfig(resolution=32, channels=3, max_pixels=10**9)
    side = 13_200  # 174 MP: 166 MiB in gray, 332 in 16 bits, 665 in color
    for depth, kind in ((8, 2), (16, 6)):
        with pytest.raises(RejectedImageError, match=rf"^too many pixels: 13200 x 13200 would .* {MAX_BYTES >> 20}"):
            decode(header_only(side, side, depth, kind), many)
    with pytest.raises(RejectedImageError, match=r"^too many pixels: 13200 x 13200$"):
        decode(header_only(side, side, 8, 0), POLICY)


def test_strips_of_a_large_image_give_the_pixels_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (333, 257, 4), dtype=np.uint8))
    for mode in ("RGBA", "RGB", "L", "P", "I;16"):
        part = (
            Image.fromarray(generator.integers(0, 65536, (333, 257), dtype=np.uint16))
            if "I" in mode
            else image.convert(mode)
        )
        for orientation in (1, 6):
            exif = Image.Exif()
            exif[0x0112] = orientation
            data = encoded(part, "PNG", exif=exif.tobytes())
            with monkeypatch.context() as patch:
                patch.setattr(raster, "STRIP_PIXELS", 257 * 20)
                strips = decode(data, POLICY).pixels.astype(int)
            assert abs(strips - decode(data, POLICY).pixels).max() <= 1

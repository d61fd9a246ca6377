"""JPEG files: damage in their scans is heard, and nothing else of them is a reason to reject."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import decode
from glo_core.dataset_format.rejection import RejectedImageError
from tests.helpers.encode_images import encoded
from tests.helpers.jpeg_sampling import jpeg_with_sampling

POLICY = ResolvedDatasetConfig(resolution=64, channels=3)
END = b"\xff\xd9"
VISIBLE = 12
"""A difference in a pixel, of 255, that damage makes"""
WAYS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 7},
    "progressive restarts": {"progressive": True, "restart_marker_rows": 1},
}


def photo(width: int = 640, height: int = 480) -> Image.Image:
    generator = np.random.default_rng(3)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([128 + 90 * np.sin(x / 37 + band) * np.cos(y / 51 + band) for band in range(3)], axis=2)
    return Image.fromarray((waves + generator.normal(0, 8, waves.shape)).clip(0, 255).astype(np.uint8))


def jpeg(way: str, image: Image.Image | None = None) -> bytes:
    return encoded(image or photo(), "JPEG", quality=85, **WAYS[way])


def scan_of(data: bytes) -> int:
    return data.index(b"\xff\xda") + 14


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_scan_that_is_cut_is_rejected_with_and_without_an_end_mark(way: str, mode: str) -> None:
    data = jpeg(way, photo().convert(mode))
    first = scan_of(data)
    for part in np.linspace(0.05, 0.98, 12):
        cut = data[: first + int((len(data) - first) * part)]
        for end in (b"", END):
            with pytest.raises(RejectedImageError, match=r"^(truncated|broken)"):
                decode(cut + end, POLICY)


@pytest.mark.parametrize("way", WAYS)
def test_damage_in_the_midst_of_a_scan_is_heard(way: str) -> None:
    data, silent = jpeg(way), 0
    true = decode(data, POLICY).pixels.astype(int)
    first = scan_of(data)
    for seed in range(60):
        generator = np.random.default_rng(seed)
        at, size = int(generator.integers(first, len(data) - 1100)), int(generator.integers(200, 1000))
        damage = bytes(size) if seed % 3 == 0 else generator.bytes(size) if seed % 3 == 1 else b""
        try:
            shown = decode(data[:at] + damage + data[at + size :], POLICY).pixels
            silent += abs(shown - true).max() > VISIBLE
        except RejectedImageError as error:
            assert error.reason in ("broken", "truncated")
    # A decoder may find its way again at the very same block: these bytes are then a valid file of another picture.
    assert silent <= 3


@pytest.mark.parametrize("way", WAYS)
def test_every_pixel_is_there_whatever_follows_the_scan(way: str) -> None:
    data = jpeg(way)
    whole = decode(data, POLICY).pixels
    for end in (
        b"",
        b"\xff",
        END + b"trailing bytes" * 99,
        END + data,
        bytes(9) + END,
        b"\xff" * 5 + END,
        END + bytes(999),
    ):
        np.testing.assert_array_equal(decode(data[:-2] + end, POLICY).pixels, whole)


def test_thumbnails_and_second_pictures_are_not_looked_at() -> None:
    plain = jpeg("baseline")
    thumbnail = encoded(Image.new("RGB", (160, 120)), "JPEG")
    segments = b"".join(
        marker + (len(body) + 2).to_bytes(2, "big") + body
        for marker, body in [
            (b"\xff\xe1", b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail),
            (b"\xff\xe1", b"Exif\0\0no TIFF at all"),
            (b"\xff\xe2", b"MPF\0II*\0" + bytes(80)),
            (b"\xff\xe2", b"ICC_PROFILE\0\2\3of three, the second"),
            (b"\xff\xee", b"Adobe\0\x64\0\0\0\0\x01"),
            (b"\xff\xfe", b"\xff\xd9 \xff\xda in a comment"),
        ]
    )
    np.testing.assert_array_equal(
        decode(plain[:2] + segments + plain[2:] + thumbnail, POLICY).pixels, decode(plain, POLICY).pixels
    )


def test_two_pictures_of_one_file_show_the_first() -> None:
    buffer = io.BytesIO()
    photo().save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (640, 480))], quality=85)
    assert (
        abs(decode(buffer.getvalue(), POLICY).pixels.astype(int) - decode(jpeg("baseline"), POLICY).pixels).max() <= 3
    )


def test_a_scan_that_never_came_is_missing() -> None:
    data = jpeg("progressive")
    last = data.rindex(b"\xff\xda")
    table = data.rindex(b"\xff\xc4", 0, last)
    with pytest.raises(RejectedImageError, match=r"^truncated: scans are missing"):
        decode(data[: min(last, table)] + END, POLICY)


def test_a_photo_of_200_million_pixels_that_libjpeg_scales_is_an_image() -> None:
    data = encoded(Image.new("L", (20_000, 10_000), 128), "JPEG")
    decoded = decode(data, POLICY)
    assert (decoded.width, decoded.height) == (20_000, 10_000)
    assert abs(decoded.pixels.astype(int) - 128).max() <= 1


def test_a_header_that_promises_more_than_the_file_holds_costs_nothing() -> None:
    data = jpeg("baseline")
    frame = data.index(b"\xff\xc0")
    bomb = data[: frame + 5] + b"\xff\xdc\xff\xdc" + data[frame + 9 :]
    with pytest.raises(RejectedImageError, match=r"^(too many pixels|truncated)"):
        decode(bomb, POLICY)


@pytest.mark.parametrize("sampling", [0x11, 0x12, 0x21, 0x22, 0x41, 0x14, 0x31])
def test_every_sampling_of_colors_decodes(sampling: int) -> None:
    data = bytearray(encoded(Image.new("RGB", (64, 64), (200, 100, 50)), "JPEG", quality=95, subsampling=0))
    frame = data.index(b"\xff\xc0")
    data[frame + 11] = sampling
    # The blocks do not fit the new header, but its sampling is decoded, not refused.
    lenient = ResolvedDatasetConfig(resolution=64, channels=3, allow_truncated=True)
    assert decode(bytes(data), lenient).pixels.shape == (64, 64, 3)


ONE = (1, 1)
UNUSUAL = {
    "42-11-11": ((4, 2), ONE, ONE),
    "31-11-11": ((3, 1), ONE, ONE),
    "22-12-11": ((2, 2), (1, 2), ONE),
    "22-11-12": ((2, 2), ONE, (1, 2)),
    "11-21-11": (ONE, (2, 1), ONE),
}
UNUSUAL_WAYS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "restarts": {"restarts": 5},
    "progressive": {"progressive": True},
}


@pytest.fixture(scope="module", params=[f"{sampling} {way}" for sampling in UNUSUAL for way in UNUSUAL_WAYS])
def unusual(request: pytest.FixtureRequest) -> tuple[Image.Image, bytes]:
    """A picture with odd sides, and its JPEG of a sampling that TurboJPEG has no name for."""
    sampling, way = request.param.split()
    image = photo(333, 251)
    return image, jpeg_with_sampling(image, UNUSUAL[sampling], **UNUSUAL_WAYS[way])


@pytest.mark.parametrize("resolution", [32, 64, 256])
def test_an_unusual_sampling_gives_the_picture(unusual: tuple[Image.Image, bytes], resolution: int) -> None:
    image, data = unusual
    policy = ResolvedDatasetConfig(resolution=resolution, channels=3)
    expected = decode(encoded(image, "PNG"), policy).pixels.astype(int)
    for end in (END, b"", b"\xff", bytes(9) + END, b"\xff" * 5 + END, END + b"trailing bytes" * 99):
        shown = decode(data[:-2] + end, policy).pixels
        assert abs(shown - expected).mean() < (8 if resolution == 256 else 3)


@pytest.mark.parametrize("resolution", [64, 256])
def test_an_unusual_sampling_that_is_cut_is_rejected(unusual: tuple[Image.Image, bytes], resolution: int) -> None:
    _, data = unusual
    policy = ResolvedDatasetConfig(resolution=resolution, channels=3)
    first = scan_of(data)
    for part in (0.1, 0.5, 0.8, 0.95):
        cut = data[: first + int((len(data) - first) * part)]
        for end in (b"", END):
            with pytest.raises(RejectedImageError, match=r"^(truncated|broken)"):
                decode(cut + end, policy)


@pytest.mark.parametrize("sampling", UNUSUAL)
def test_damage_in_an_unusual_sampling_is_heard(sampling: str) -> None:
    data = jpeg_with_sampling(photo(333, 251), UNUSUAL[sampling])
    whole = ResolvedDatasetConfig(resolution=256, channels=3)
    true, silent, first = decode(data, whole).pixels.astype(int), 0, scan_of(data)
    for seed in range(20):
        generator = np.random.default_rng(seed)
        at = int(generator.integers(first, len(data) - 1100))
        try:
            shown = decode(data[:at] + (generator.bytes(500) if seed % 2 else b"") + data[at + 500 :], whole).pixels
            silent += abs(shown - true).max() > VISIBLE
        except RejectedImageError as error:
            assert error.reason in ("broken", "truncated")
    assert silent <= 3

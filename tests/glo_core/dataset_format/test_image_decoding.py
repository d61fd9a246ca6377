from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from glo_core.dataset_format.config import DatasetConfig, ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import decode
from glo_core.dataset_format.rejection import RejectedImageError
from tests.helpers.color_profiles import adobe_rgb
from tests.helpers.encode_images import encoded

RGB = ResolvedDatasetConfig(resolution=16, channels=3)
GRAY = ResolvedDatasetConfig(resolution=16, channels=1)


def corner(size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Black, with a white upper left quarter: no two of its eight orientations are the same but by symmetry."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[: size[1] // 2, : size[0] // 2] = 255
    pixels[: size[1] // 2, size[0] // 2 :] = 100
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("policy", [RGB, GRAY], ids=["rgb", "gray"])
def test_every_format_decodes_upright(kind: str, policy: ResolvedDatasetConfig) -> None:
    decoded = decode(encoded(corner(), kind), policy)
    assert decoded.pixels.shape == (16, 16, policy.channels)
    assert decoded.pixels.dtype == np.uint8
    assert (decoded.width, decoded.height) == (32, 32)
    assert decoded.pixels[3, 3].min() > 240
    assert 80 < decoded.pixels[3, 12].mean() < 120
    assert decoded.pixels[12].max() < 15


INVERSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation: int) -> None:
    stored = corner().transpose(INVERSE[orientation]) if orientation > 1 else corner()
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(stored, "PNG", exif=exif.tobytes()), RGB)
    np.testing.assert_array_equal(decoded.pixels, decode(encoded(corner(), "PNG"), RGB).pixels)


def test_transparency_shows_the_background() -> None:
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    green = ResolvedDatasetConfig(resolution=16, channels=3, background="#00ff00")
    assert decode(encoded(clear, "PNG"), green).pixels[0, 0].tolist() == [0, 255, 0]
    half = Image.new("LA", (20, 20), (0, 128))
    assert abs(int(decode(encoded(half, "PNG"), GRAY).pixels[0, 0, 0]) - 127) <= 1
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([9, 9, 9])
    assert decode(encoded(palette, "PNG", transparency=0), green).pixels[0, 0].tolist() == [0, 255, 0]


def test_sixteen_bit_gray_is_scaled_and_not_clipped() -> None:
    deep = Image.fromarray(np.full((20, 20), 32896, np.uint16))
    assert decode(encoded(deep, "PNG"), GRAY).pixels[0, 0, 0] == 128


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    frames = [Image.new("L", (16, 16), value) for value in (200, 10)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, GRAY).pixels[0, 0, 0] == 200


def test_an_image_is_cropped_to_its_central_square() -> None:
    wide = Image.new("L", (48, 16), 0)
    wide.paste(255, (16, 0, 32, 16))
    assert decode(encoded(wide, "PNG"), GRAY).pixels.min() == 255
    assert (
        decode(
            encoded(ImageOps.expand(Image.new("L", (16, 16), 255), 8, 0), "PNG"),
            ResolvedDatasetConfig(resolution=16, channels=1, tight_crop=16),
        ).pixels.min()
        == 255
    )


def test_downscaling_is_antialiased() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32)))
    inner = decode(encoded(stripes, "PNG"), GRAY).pixels[2:-2, 2:-2]
    assert abs(inner.astype(int) - 127).max() < 12


def damaged_checksum() -> bytes:
    data = bytearray(encoded(corner(), "PNG"))
    data[data.index(b"IDAT") - 8] ^= 0xFF  # The checksum of the chunk before
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not an image", "unknown format"),
        (encoded(corner(), "PNG")[:60], "truncated"),
        (encoded(corner((256, 256)), "JPEG")[:400], "truncated"),
        (encoded(corner((256, 256)), "JPEG")[:20], "truncated"),
        (encoded(corner(), "GIF")[:-30], "truncated"),
        (encoded(corner(), "WEBP")[:-8], "truncated"),
        (encoded(corner(), "BMP")[:-9], "truncated"),
        (encoded(corner(), "PNG").replace(b"IDAT", b"IDAX"), "broken"),
        (damaged_checksum(), "broken"),
        (encoded(corner(), "TIFF")[:-200], "broken"),
    ],
    ids=["empty", "text", "png", "jpeg", "jpeg-header", "gif", "webp", "bmp", "no-data", "checksum", "tiff"],
)
def test_what_cannot_be_read_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(RejectedImageError, match=f"^{reason}"):
        decode(data, RGB)


@pytest.mark.parametrize("field, value", [("resolution", 48), ("channels", 4), ("background", "nocolor")])
def test_a_bad_policy_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{field}` .*{value}.* must be"):
        DatasetConfig(**{field: value})


# ---------------------------------------------------------------- any image


def ramp(mode: str, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Dark on the left, light on the right."""
    return Image.fromarray(np.tile(np.linspace(20, 230, size[0]).astype(np.uint8), (size[1], 1))).convert(mode)


def is_ramp(pixels: np.ndarray) -> bool:
    row = pixels.astype(int).mean(axis=(0, 2))
    return bool((np.diff(row) > 0).all() and row[0] < 60 and row[-1] > 190)


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.tile(np.linspace(5000, 60000, 40).astype(np.uint16), (40, 1)))


def lab() -> Image.Image:
    channels = np.full((40, 40, 3), 128, np.uint8)
    channels[..., 0] = np.linspace(20, 240, 40)
    return Image.frombytes("LAB", (40, 40), (channels ^ np.array([0, 128, 128], np.uint8)).tobytes())


KINDS = {
    "palette": lambda: encoded(ramp("P"), "PNG"),
    "palette gif": lambda: encoded(ramp("P"), "GIF"),
    "16-bit gray": lambda: encoded(sixteen_bits(), "PNG"),
    "16-bit tiff": lambda: encoded(sixteen_bits(), "TIFF"),
    "float": lambda: encoded(ramp("F"), "TIFF"),
    "32-bit": lambda: encoded(ramp("I"), "TIFF"),
    "cmyk jpeg": lambda: encoded(ramp("CMYK"), "JPEG", quality=95),
    "cmyk tiff": lambda: encoded(ramp("CMYK"), "TIFF"),
    "lab": lambda: encoded(lab(), "TIFF"),
    "ycbcr": lambda: encoded(ramp("YCbCr"), "TIFF"),
    "gray with alpha": lambda: encoded(ramp("LA"), "PNG"),
    "rgba webp": lambda: encoded(ramp("RGBA"), "WEBP"),
    "progressive": lambda: encoded(ramp("RGB"), "JPEG", progressive=True, quality=95),
    "gray jpeg": lambda: encoded(ramp("L"), "JPEG", quality=95),
    "lzw tiff": lambda: encoded(ramp("RGB"), "TIFF", compression="tiff_lzw"),
    "big-endian name": lambda: encoded(ramp("RGB"), "BMP"),
    "animated": lambda: encoded(ramp("P"), "GIF", save_all=True, append_images=[Image.new("P", (40, 40))]),
    "multi-page": lambda: encoded(ramp("L"), "TIFF", save_all=True, append_images=[Image.new("L", (9, 9))]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", [RGB, GRAY], ids=["rgb", "gray"])
def test_every_kind_of_pixel_decodes_to_the_same_picture(kind: str, policy: ResolvedDatasetConfig) -> None:
    decoded = decode(KINDS[kind](), policy)
    assert decoded.pixels.shape == (16, 16, policy.channels)
    assert is_ramp(decoded.pixels)


def test_one_bit_images_are_black_and_white() -> None:
    pixels = decode(encoded(corner().convert("1"), "PNG"), GRAY).pixels
    assert pixels[2, 2] == 255 and pixels[12, 12] == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 7)])
def test_one_pixel_sides_decode(size: tuple[int, int]) -> None:
    for kind in ("PNG", "JPEG"):
        decoded = decode(encoded(Image.new("RGB", size, (200, 100, 50)), kind), RGB)
        assert abs(decoded.pixels.astype(int) - [200, 100, 50]).max() < 12
        assert (decoded.width, decoded.height) == size


def test_a_foreign_color_profile_is_converted_and_srgb_is_left_alone() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (32, 32), (100, 150, 200))
    plain = decode(encoded(image, "PNG"), RGB).pixels
    np.testing.assert_array_equal(decode(encoded(image, "PNG", icc_profile=srgb), RGB).pixels, plain)
    np.testing.assert_array_equal(decode(encoded(image, "PNG", icc_profile=b"no profile"), RGB).pixels, plain)
    wide = encoded(image, "PNG", icc_profile=adobe_rgb())
    converted = decode(wide, RGB).pixels
    # Adobe RGB's primaries are wider: the same color has more contrast between channels in sRGB.
    assert converted[8, 8, 0] < plain[8, 8, 0] - 5
    unconverted = ResolvedDatasetConfig(resolution=16, channels=3, srgb=False)
    np.testing.assert_array_equal(decode(wide, unconverted).pixels, plain)
    # A profile that does not fit the mode leaves the colors as they are.
    gray = image.convert("L")
    np.testing.assert_array_equal(
        decode(encoded(gray, "PNG", icc_profile=adobe_rgb()), GRAY).pixels, decode(encoded(gray, "PNG"), GRAY).pixels
    )


def test_a_decompression_bomb_is_rejected_before_it_is_decoded() -> None:
    small = ResolvedDatasetConfig(resolution=16, channels=3, max_pixels=1000)
    with pytest.raises(RejectedImageError, match="too many pixels: 32 x 32"):
        decode(encoded(corner(), "PNG"), small)
    # A header that promises 10^9 pixels, with no data behind it.
    bomb = encoded(Image.new("1", (40000, 30000)), "PNG")
    assert len(bomb) < 200_000
    with pytest.raises(RejectedImageError, match="too many pixels"):
        decode(bomb, RGB)
    assert Image.MAX_IMAGE_PIXELS == 89478485


def test_the_smallest_side_is_a_policy() -> None:
    with pytest.raises(RejectedImageError, match="too small: 40 x 31"):
        decode(encoded(ramp("L", (40, 31)), "PNG"), ResolvedDatasetConfig(resolution=16, channels=3, min_side=32))


def test_a_truncated_image_is_decoded_on_request() -> None:
    data = encoded(ramp("L", (64, 64)), "JPEG", quality=95)
    truncated = decode(
        data[: len(data) * 2 // 3], ResolvedDatasetConfig(resolution=16, channels=1, allow_truncated=True)
    )
    whole = decode(data, GRAY)
    assert abs(truncated.pixels[:4].astype(int) - whole.pixels[:4]).max() < 3
    with pytest.raises(RejectedImageError, match="truncated"):
        decode(data[: len(data) * 2 // 3], GRAY)


@pytest.mark.parametrize("size", [(640, 480), (481, 643), (515, 515)])
@pytest.mark.parametrize("policy", [{"channels": 3}, {"channels": 1}, {"channels": 3, "tight_crop": 200}], ids=str)
def test_a_jpeg_decoded_small_is_the_full_one_but_for_rounding(size: tuple[int, int], policy: dict[str, Any]) -> None:
    y, x = np.mgrid[: size[1], : size[0]]
    smooth = np.stack([128 + 100 * np.sin(x / 40 + c) * np.cos(y / 55) for c in range(3)], axis=2)
    data = encoded(Image.fromarray(smooth.astype(np.uint8)), "JPEG", quality=95)
    full = decode(data, ResolvedDatasetConfig(resolution=32, draft=False, **policy)).pixels.astype(float)
    small = decode(data, ResolvedDatasetConfig(resolution=32, **policy)).pixels.astype(float)
    assert np.sqrt(((full - small) ** 2).mean()) < 2.0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_decoded_small_is_upright_and_in_place(orientation: int) -> None:
    # 467 is no multiple of 8: the last column of the small image is only partly filled, wherever it ends up.
    y, x = np.mgrid[:467, :467]
    smooth = np.stack([128 + 100 * np.sin(x / 40 + c) * np.cos(y / 55 + x / 90) for c in range(3)], axis=2)
    upright = Image.fromarray(smooth.astype(np.uint8))
    stored = upright.transpose(INVERSE[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    small = decode(encoded(stored, "JPEG", quality=97, exif=exif.tobytes()), RGB).pixels.astype(float)
    full = decode(encoded(upright, "PNG"), RGB).pixels.astype(float)
    assert np.sqrt(((full - small) ** 2).mean()) < 2.0

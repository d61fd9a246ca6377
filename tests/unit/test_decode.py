import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from glo_core.decode import DecodePolicy, RejectedImageError, decode

RGB = DecodePolicy(resolution=16, channels=3)
GREY = DecodePolicy(resolution=16, channels=1)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def corner(size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Black, with a white upper left quarter: no two of its eight orientations are the same but by symmetry."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[: size[1] // 2, : size[0] // 2] = 255
    pixels[: size[1] // 2, size[0] // 2 :] = 100
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("policy", [RGB, GREY], ids=["rgb", "grey"])
def test_every_format_decodes_upright(kind: str, policy: DecodePolicy) -> None:
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
    green = DecodePolicy(resolution=16, channels=3, background="#00ff00")
    assert decode(encoded(clear, "PNG"), green).pixels[0, 0].tolist() == [0, 255, 0]
    half = Image.new("LA", (20, 20), (0, 128))
    assert abs(int(decode(encoded(half, "PNG"), GREY).pixels[0, 0, 0]) - 127) <= 1
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([9, 9, 9])
    assert decode(encoded(palette, "PNG", transparency=0), green).pixels[0, 0].tolist() == [0, 255, 0]


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    deep = Image.fromarray(np.full((20, 20), 32896, np.uint16))
    assert decode(encoded(deep, "PNG"), GREY).pixels[0, 0, 0] == 128


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("L", (16, 16), value) for value in (200, 10)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, GREY).pixels[0, 0, 0] == 200


def test_the_central_square_is_kept() -> None:
    wide = Image.new("L", (48, 16), 0)
    wide.paste(255, (16, 0, 32, 16))
    assert decode(encoded(wide, "PNG"), GREY).pixels.min() == 255
    assert (
        decode(
            encoded(ImageOps.expand(Image.new("L", (16, 16), 255), 8, 0), "PNG"),
            DecodePolicy(resolution=16, channels=1, tight_crop=16),
        ).pixels.min()
        == 255
    )


def test_downscaling_is_antialiased() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32)))
    inner = decode(encoded(stripes, "PNG"), GREY).pixels[2:-2, 2:-2]
    assert abs(inner.astype(int) - 127).max() < 12


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"not an image", "not an image of a known format"),
        (encoded(corner(), "PNG")[:60], "broken"),
        (encoded(corner((256, 256)), "JPEG")[:400], "broken"),
    ],
    ids=["empty", "text", "cut png", "cut jpeg"],
)
def test_what_cannot_be_read_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(RejectedImageError, match=f"^{reason}"):
        decode(data, RGB)


@pytest.mark.parametrize("field, value", [("resolution", 48), ("channels", 4), ("background", "nocolour")])
def test_a_bad_policy_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"`{field}` .*{value}.* must be"):
        DecodePolicy(**{field: value})

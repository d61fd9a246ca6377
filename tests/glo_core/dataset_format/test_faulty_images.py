"""Small files that once failed, with the pixels that libvips shows (OpenCV for BMP); `tests/faults/` holds them."""

from pathlib import Path

import numpy as np
import pytest

from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import Decoded, decode
from glo_core.dataset_format.rejection import RejectedImageError

FAULTS = Path(__file__).parents[2] / "faults"
TOLERANCE = 3
GRAY, WHITE = (8, 8, 8), (247, 247, 247)

# The pixels of the row at a third of the height: third from the left, and from the right
IMAGES = {
    "exif_orientation6_plain.jpg": ((0, 0, 0), (255, 255, 255)),
    "exif_orientation6_xresolution_signed.jpg": ((0, 0, 0), (255, 255, 255)),
    "exif_orientation6_make_float.jpg": ((0, 0, 0), (255, 255, 255)),
    "png_ztxt_above_1mib.png": ((214, 74, 129), (200, 206, 123)),
    "png_text_chunk_called_exif.png": ((149, 162, 61), (105, 191, 62)),
    "tiff_float_0_to_1.tif": (GRAY, WHITE),
    "tiff_uint16_same_picture.tif": (GRAY, WHITE),
    "tiff_uint16_white_is_zero.tif": (WHITE, GRAY),
    "tiff_uint8_white_is_zero.tif": (WHITE, (9, 9, 9)),
    "png_trns_grey16.png": ((255, 255, 255), (0, 0, 0)),
    "png_trns_grey8.png": ((255, 255, 255), (0, 0, 0)),
    "png_16bit_ramp_to_255.png": ((0, 0, 0), (1, 1, 1)),
    "png_16bit_ramp_to_65535.png": (GRAY, WHITE),
    "icc_linear_named_srgb.png": ((128, 128, 128), (128, 128, 128)),
    "icc_display_p3.png": ((219, 14, 37), (219, 14, 37)),
    "jpeg_whole_without_end_mark.jpg": ((78, 135, 128), (175, 118, 127)),
    "bmp_alpha_mask_all_zero.bmp": ((58, 179, 121), None),
    "bmp_alpha_mask_255.bmp": ((202, 84, 127), None),
}


def shown(name: str, resolution: int) -> Decoded:
    """The file in its own size, which is `resolution` where it is square."""
    policy = ResolvedDatasetConfig(resolution=resolution, channels=3, draft=False)
    return decode((FAULTS / name).read_bytes(), policy)


@pytest.mark.parametrize("name", IMAGES)
def test_a_file_that_once_failed_gives_its_pixels(name: str) -> None:
    size = shown(name, 8)
    side = min(size.width, size.height)
    # Scaled down to a power of two, the row and the columns lie at the same fractions of the picture.
    resolution = 1 << (side.bit_length() - 1)
    pixels = shown(name, resolution).pixels.astype(int)
    row = pixels[resolution // 3]
    for color, column in zip(IMAGES[name], (2 * resolution // side, -1 - 2 * resolution // side), strict=True):
        if color is not None:
            np.testing.assert_allclose(row[column], color, atol=TOLERANCE)


def test_an_orientation_beside_odd_tags_turns_the_image() -> None:
    plain = shown("exif_orientation6_plain.jpg", 64)
    for name in ("exif_orientation6_xresolution_signed.jpg", "exif_orientation6_make_float.jpg"):
        np.testing.assert_array_equal(shown(name, 64).pixels, plain.pixels)


def test_a_damaged_scan_is_rejected_though_its_end_mark_is_there() -> None:
    with pytest.raises(RejectedImageError) as error:
        shown("jpeg_cut_at_half_with_end_mark.jpg", 64)
    assert error.value.reason in ("truncated", "broken")

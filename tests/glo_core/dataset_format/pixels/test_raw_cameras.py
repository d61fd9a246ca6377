"""A raw camera file is not its thumbnail."""

import numpy as np
import pytest

from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import decode
from glo_core.dataset_format.pixels.headers import HEAD_BYTES, format_of
from glo_core.dataset_format.rejection import RejectedImageError
from tests.helpers.encode_images import ramps, tiff

POLICY = ResolvedDatasetConfig(resolution=16, channels=3)
THUMBNAIL = ramps(3, 255).astype(np.int64)
_TAGS = {
    "DNG": {50706: ("B", [1, 4, 0, 0])},
    "DNG with a thumbnail": {254: ("I", [1]), 330: ("I", [8]), 50706: ("B", [1, 4, 0, 0])},
    "NEF": {254: ("I", [1]), 271: ("B", list(b"NIKON CORPORATION\0")), 330: ("I", [999_999])},
    "TIFF/EP": {33421: ("H", [2, 2]), 33422: ("B", [0, 1, 1, 2])},
}


def with_second_directory(entries: dict[int, int]) -> bytes:
    """A picture, and a directory below it with `entries`."""
    second = len(entries).to_bytes(2, "little") + b"".join(
        tag.to_bytes(2, "little") + b"\3\0\1\0\0\0" + value.to_bytes(4, "little") for tag, value in entries.items()
    )
    plain = tiff(THUMBNAIL, 8, 2, tags={330: ("I", [0])})
    return tiff(THUMBNAIL, 8, 2, tags={330: ("I", [len(plain)])}) + second + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", _TAGS)
def test_a_raw_file_with_a_thumbnail_first_is_of_unknown_format(name: str, order: str) -> None:
    with pytest.raises(RejectedImageError, match=r"^unknown format: a raw camera file"):
        decode(tiff(THUMBNAIL, 8, 2, tags=_TAGS[name], order=order), POLICY)


@pytest.mark.parametrize("entries", [{262: 32803}, {262: 34892}, {259: 34713}, {259: 32767}], ids=str)
def test_what_a_sensor_saw_is_seen_in_any_directory(entries: dict[int, int]) -> None:
    with pytest.raises(RejectedImageError, match=r"^unknown format"):
        decode(with_second_directory(entries), POLICY)


@pytest.mark.parametrize("entries", [{}, {254: 1, 262: 2}], ids=str)
def test_smaller_copies_below_a_picture_make_it_no_raw_file(entries: dict[int, int]) -> None:
    assert decode(with_second_directory(entries), POLICY).width == 32


@pytest.mark.parametrize(
    "head",
    [
        b"II*\0\x10\0\0\0CR\x02\0", b"\0\0\0\x18ftypcrx ",
        b"FUJIFILMCCD-RAW 0201", b"IIRO\x08\0\0\0", b"IIU\0\x18\0\0\0",
        b"II\x1a\0\0\0HEAPCCDR", b"FOVb\0\0\2\0", b"\0MRM",
    ],
)  # fmt: skip
def test_beginnings_of_raw_files_are_no_images(head: bytes) -> None:
    assert format_of(head[:HEAD_BYTES]) is None
    with pytest.raises(RejectedImageError, match=r"^unknown format$"):
        decode(head + bytes(999), POLICY)

"""How the files of images begin: the first bytes decide what a file is, not its name."""

from typing import Literal, get_args

Format = Literal["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]
"""The formats that are read, by Pillow's names."""
FORMATS: tuple[Format, ...] = get_args(Format)

HEAD_BYTES = 16
"""As many bytes of a file tell its format."""

_BEGINNINGS: tuple[tuple[bytes, Format], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
)


def format_of(data: bytes) -> Format | None:
    """The format of a file that begins with `data`, of which `HEAD_BYTES` are enough; None if it is no image.

    A raw camera file with a beginning of its own (CR2, CR3, RAF, ORF, RW2) is none of these formats.
    """
    if data[:4] == b"RIFF":
        return "WEBP" if data[8:12] == b"WEBP" else None
    if data[8:11] == b"CR\x02":  # Canon's CR2 is a TIFF whose first picture is a thumbnail.
        return None
    for beginning, name in _BEGINNINGS:
        if data.startswith(beginning):
            return name
    return None

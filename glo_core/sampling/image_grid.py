"""Images laid out in rows."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from glo_core.common.arrays import UInt8Array

GAP = 2
"""Pixels between the tiles of a grid."""


def grid(rows: Sequence[UInt8Array]) -> Image.Image:
    """Lay out `rows` of equally many images (each uint8 `[columns, H, W, C]`), the first row on top, with gaps."""
    tiles = np.stack(rows)  # [rows, columns, H, W, C]
    padded = np.pad(tiles, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    count, columns, height, width, channels = padded.shape
    sheet = padded.transpose(0, 2, 1, 3, 4).reshape(count * height, columns * width, channels)[:-GAP, :-GAP]
    return Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet)


def in_rows(images: UInt8Array, columns: int) -> list[UInt8Array]:
    """Cut `images` `[n, H, W, C]` into rows of `columns`; a last row that is not full is left out."""
    return [images[i : i + columns] for i in range(0, len(images) - columns + 1, columns)] or [images]

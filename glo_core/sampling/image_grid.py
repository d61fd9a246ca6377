"""Images laid out in rows."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from glo_core.common.arrays import UInt8Array
from glo_core.common.errors import ConfigError

GAP = 2
"""Pixels between the tiles of a grid"""


def image_grid(images: npt.ArrayLike, columns: int | None = None) -> Image.Image:
    """One picture of `images` in reading order, with white gaps; a last row that is not full ends white.

    Args:
        images: uint8 `[n, H, W, C]` or `[n, H, W]`, a NumPy array or a tensor in host memory.
        columns: images in a row; None makes the grid about square.

    Raises:
        ConfigError: if `images` are others, or `columns` is below 1.
    """
    tiles = np.asarray(images)
    if tiles.ndim == 3:
        tiles = tiles[..., None]
    if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[3] not in (1, 3) or not len(tiles):
        raise ConfigError(
            f"`images` (={tiles.dtype} {list(tiles.shape)}) must be uint8 [n, H, W, 1 or 3], and n above 0"
        )
    columns = math.ceil(math.sqrt(len(tiles))) if columns is None else columns
    if columns < 1:
        raise ConfigError(f"`columns` (={columns}) must be at least 1")
    white = np.full((-len(tiles) % columns, *tiles.shape[1:]), 255, np.uint8)
    return grid(in_rows(np.concatenate([tiles, white]), columns))


def grid(rows: Sequence[UInt8Array]) -> Image.Image:
    """Lay out `rows` of equally many images (each uint8 `[columns, H, W, C]`), the first row on top, with gaps."""
    tiles = np.stack(rows)  # [rows, columns, H, W, C]
    padded = np.pad(tiles, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    count, columns, height, width, channels = padded.shape
    # [rows, columns, H, W, C] -> [rows, H, columns, W, C] -> [rows * H, columns * W, C]
    sheet = padded.transpose(0, 2, 1, 3, 4).reshape(count * height, columns * width, channels)[:-GAP, :-GAP]
    return Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet)


def in_rows(images: UInt8Array, columns: int) -> list[UInt8Array]:
    """Cut `images` `[n, H, W, C]` into rows of `columns`; a last row that is not full is left out."""
    return [images[i : i + columns] for i in range(0, len(images) - columns + 1, columns)] or [images]

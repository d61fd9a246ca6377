"""The nearest training images of a picture, by pixels."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from glo_core.common.arrays import Int64Array, UInt8Array, row_chunks
from glo_core.common.errors import UserError
from glo_core.data.image_source import ImageSource
from glo_core.losses.pixel_ranges import unit_bytes

_CHUNK = 256
"""Training images that are compared at once"""


class Neighbors(NamedTuple):
    """Nearest training images of some queries, nearest first."""

    distances: npt.NDArray[np.float32]
    """Mean squared error of pixels in [0, 1], float32 `[queries, k]`"""
    ids: Int64Array
    """Image ids, int64 `[queries, k]`"""

    def merge(self, other: "Neighbors") -> "Neighbors":
        """The nearest of two searches over different images; of equal distances, the lower id."""
        distances = np.concatenate([self.distances, other.distances], axis=1)
        ids = np.concatenate([self.ids, other.ids], axis=1)
        # By distance, then by id: [queries, 2 k] -> [queries, k]
        order = np.lexsort((ids, distances), axis=1)[:, : self.ids.shape[1]]
        return Neighbors(np.take_along_axis(distances, order, 1), np.take_along_axis(ids, order, 1))


def nearest(queries: UInt8Array, images: ImageSource, k: int) -> Neighbors:
    """Search all of `images` for the `k` nearest of each of `queries` (uint8 `[q, H, W, C]`) by pixel error.

    Fewer than `k` images leave distances of infinity and ids of -1.
    """
    flat = unit_bytes(torch.from_numpy(queries), torch.float64).flatten(1)
    best = Neighbors(np.full((len(flat), k), np.inf, np.float32), np.full((len(flat), k), -1, np.int64))
    for rows in row_chunks(len(images.ids), _CHUNK):
        candidates = unit_bytes(images.take(rows).cpu(), torch.float64).flatten(1)
        # |q - x|^2 = |q|^2 - 2 q.x + |x|^2
        squared = flat.square().sum(1, keepdim=True) - 2 * flat @ candidates.T + candidates.square().sum(1)
        distances = (squared.clamp_min(0) / flat.shape[1]).float().numpy()
        ids = np.broadcast_to(images.ids[rows], distances.shape)
        best = best.merge(Neighbors(distances, ids))
    return best


def take_ids(images: ImageSource, ids: Int64Array) -> UInt8Array:
    """Images by id (int64 `[n]`), uint8 `[n, H, W, C]`.

    Raises:
        UserError: if `images` does not hold one of them.
    """
    order = np.argsort(images.ids)
    return images.take(order[places_of(ids, images.ids[order])]).cpu().numpy()


def places_of(ids: Int64Array, held: Int64Array) -> Int64Array:
    """The place of each of `ids` (int64 `[n]`) in `held` (int64, ascending), int64 `[n]`.

    Raises:
        UserError: naming the first id that `held` lacks.
    """
    places = np.searchsorted(held, ids).clip(max=max(len(held) - 1, 0))
    missing = ids if not len(held) else ids[held[places] != ids]
    if len(missing):
        span = f"{len(held)} ids from {held[0]} to {held[-1]}" if len(held) else "no id"
        raise UserError(f"image id {missing[0]}: not among the training images ({span})")
    return places

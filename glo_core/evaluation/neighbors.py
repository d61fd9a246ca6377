"""The nearest training images of a picture, by pixels."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from glo_core.common.arrays import Int64Array, UInt8Array
from glo_core.data.image_source import ImageSource

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
        nearest = np.lexsort((ids, distances), axis=1)[:, : self.ids.shape[1]]
        return Neighbors(np.take_along_axis(distances, nearest, 1), np.take_along_axis(ids, nearest, 1))


def nearest(queries: UInt8Array, images: ImageSource, k: int) -> Neighbors:
    """Search all of `images` for the `k` nearest of each of `queries` (uint8 `[q, H, W, C]`) by pixel error.

    Fewer than `k` images leave distances of infinity and ids of -1.
    """
    flat = torch.from_numpy(queries.reshape(len(queries), -1) / 255.0)
    best = Neighbors(np.full((len(flat), k), np.inf, np.float32), np.full((len(flat), k), -1, np.int64))
    for start in range(0, len(images.ids), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(images.ids)))
        candidates = images.take(rows).flatten(1).double() / 255
        # |q - x|^2 = |q|^2 - 2 q.x + |x|^2
        squared = flat.square().sum(1, keepdim=True) - 2 * flat @ candidates.T + candidates.square().sum(1)
        distances = (squared.clamp_min(0) / flat.shape[1]).float().numpy()
        ids = np.broadcast_to(images.ids[rows], distances.shape)
        best = best.merge(Neighbors(distances, ids))
    return best


def take_ids(images: ImageSource, ids: Int64Array) -> UInt8Array:
    """Images by id, uint8 `[n, H, W, C]`. Every id must be held."""
    order = np.argsort(images.ids)
    return images.take(order[np.searchsorted(images.ids, ids, sorter=order)]).numpy()

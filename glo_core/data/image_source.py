"""Images of some code shards: what training asks of them, and images in memory."""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from glo_core.common.arrays import Int64Array
from glo_core.dataset_format.config import DecodePolicy


class ImageSource(Protocol):
    """The images of some code shards, in the order shard by shard, ids ascending within each."""

    ids: Int64Array
    """int64 `[n]`"""
    shards: Sequence[int]
    """The shards held, in order"""
    code_shards: int
    resolution: int
    channels: int
    snapshot: str
    """Digest of what is held; part of the order of training"""

    def take(self, rows: Int64Array) -> torch.Tensor:
        """Images at `rows` (int64 `[b]`), uint8 `[b, H, W, C]` in host memory."""
        ...

    def select(self, shards: Sequence[int]) -> "ImageSource":
        """The same source with only `shards`, in that order."""
        ...


def rows_of_shards(images: ImageSource) -> dict[int, tuple[int, int]]:
    """First row and end of each code shard that `images` holds."""
    sizes = np.bincount(images.ids % images.code_shards, minlength=images.code_shards)[list(images.shards)]
    ends = np.cumsum(sizes).tolist()
    return dict(zip(images.shards, zip([0, *ends[:-1]], ends, strict=True), strict=True)) if ends else {}


class TensorImages:
    """Images in memory, for notebooks and tests; see `ImageSource`."""

    def __init__(self, images: torch.Tensor, ids: Int64Array | None = None, *, code_shards: int = 32) -> None:
        """Hold `images`, uint8 `[n, H, W, C]`, under `ids` (int64 `[n]`, unique; by default 0 to n-1).

        Raises:
            ValueError: if dtype or shape are others.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2]:
            raise ValueError(f"`images` (={images.dtype} {list(images.shape)}) must be uint8 [n, side, side, channels]")
        DecodePolicy(resolution=images.shape[1], channels=images.shape[3])  # Raises where a dataset would.
        self._all, self._all_ids = images, np.arange(len(images)) if ids is None else ids
        self.code_shards, self.resolution, self.channels = code_shards, images.shape[1], images.shape[3]
        pixels = images.contiguous().numpy()
        self.snapshot = hashlib.blake2b(self._all_ids.tobytes() + pixels.tobytes(), digest_size=16).hexdigest()
        self._hold(range(code_shards))

    def _hold(self, shards: Sequence[int]) -> None:
        self.shards: Sequence[int] = list(shards)
        by_shard = [np.flatnonzero(self._all_ids % self.code_shards == shard) for shard in shards]
        places = np.concatenate([rows[np.argsort(self._all_ids[rows])] for rows in by_shard])
        self.ids: Int64Array = self._all_ids[places]
        self._images = self._all[torch.from_numpy(places)]

    def take(self, rows: Int64Array) -> torch.Tensor:
        return self._images[torch.from_numpy(rows)]

    def select(self, shards: Sequence[int]) -> "TensorImages":
        selected = object.__new__(TensorImages)
        selected.__dict__.update(self.__dict__)
        selected._hold(shards)
        return selected

"""Made-up images, so that a benchmark of the code table needs neither disk nor decoding for 10^7 of them."""

from collections.abc import Sequence

import numpy as np
import torch

from glo_core.common.arrays import Int64Array

DIM, SIDE, SHARDS = 128, 32, 32


class MadeUpImages:
    """As many images as one asks for, all cut from a few random ones; see `glo_core.dataset.ImageSource`."""

    resolution, channels, code_shards = SIDE, 1, SHARDS
    snapshot = "made up"

    def __init__(self, rows: int, shards: Sequence[int] = range(SHARDS)) -> None:
        self.shards: Sequence[int] = list(shards)
        # In the order of the shards, ids ascending within each.
        self.ids: Int64Array = np.concatenate([np.arange(shard, rows, SHARDS, dtype=np.int64) for shard in self.shards])
        self._rows = rows
        self._pool = torch.randint(0, 256, (1024, SIDE, SIDE, 1), dtype=torch.uint8)

    def take(self, rows: Int64Array) -> torch.Tensor:
        """Images at `rows` (int64 `[b]`), uint8 `[b, side, side, 1]`."""
        return self._pool[torch.from_numpy(rows % len(self._pool))]

    def select(self, shards: Sequence[int]) -> "MadeUpImages":
        """The same images of some shards."""
        return MadeUpImages(self._rows, shards)


class EnoughError(Exception):
    """The sample is taken."""

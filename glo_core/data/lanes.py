"""Who owns which image: pure functions of counts.

image id --mod S--> code shard --mod L--> lane --contiguous ranges--> rank
"""

import math

import numpy as np

from glo_core.common.arrays import Int64Array


def num_lanes(code_shards: int, batch_size: int) -> int:
    """L = gcd(S, B)."""
    return math.gcd(code_shards, batch_size)


def shards_of_lane(lane: int, *, code_shards: int, lanes: int) -> Int64Array:
    """The shards s with s mod L = `lane`, ascending. int64 `[code_shards / lanes]`."""
    return np.arange(lane, code_shards, lanes, dtype=np.int64)


def lanes_of_rank(rank: int, *, world_size: int, lanes: int) -> Int64Array:
    """The contiguous lanes of `rank`, so that ranks in order hold the global batch in order. int64.

    Raises:
        ValueError: if there are more ranks than lanes.
    """
    if not 1 <= world_size <= lanes:
        raise ValueError(f"`world_size` (={world_size}) must be from 1 to the number of lanes (={lanes})")
    return np.arange(rank * lanes // world_size, (rank + 1) * lanes // world_size, dtype=np.int64)


def overload(*, world_size: int, lanes: int) -> float:
    """Work of the busiest rank over that of an even split: 1.0 where `world_size` divides `lanes`."""
    return math.ceil(lanes / world_size) * world_size / lanes

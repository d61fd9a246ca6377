"""Which rank owns which image: pure functions of counts.

image id --mod S--> code shard --mod L--> lane --contiguous ranges--> rank
"""

import math

import numpy as np

from glo_core.common.arrays import Int, Int64Array


def num_lanes(code_shards: int, batch_size: int) -> int:
    """The number of lanes, L = gcd(S, B), for S code shards and batches of B images."""
    return math.gcd(code_shards, batch_size)


def shards_of_lane(lane: int, *, code_shards: int, lanes: int) -> Int[Int64Array, " _"]:
    """The code shards s with s mod L = `lane`, ascending, int64 `[S / L]`."""
    # Axis [shard of the lane].
    return np.arange(lane, code_shards, lanes, dtype=np.int64)


def lanes_of_rank(rank: int, *, world_size: int, lanes: int) -> Int[Int64Array, " _"]:
    """The lanes of `rank`, from floor(r L / W) to before floor((r + 1) L / W), int64.

    They are contiguous, so that the ranks in their order hold the global batch in its order.

    Raises:
        ValueError: if there are more ranks than lanes.
    """
    if not 1 <= world_size <= lanes:
        raise ValueError(f"`world_size` (={world_size}) must be from 1 to the number of lanes (={lanes})")
    # Axis [lane of the rank].
    return np.arange(rank * lanes // world_size, (rank + 1) * lanes // world_size, dtype=np.int64)


def overload(*, world_size: int, lanes: int) -> float:
    """The work of the busiest rank over that of an even split: 1.0 where `world_size` divides `lanes`."""
    return math.ceil(lanes / world_size) * world_size / lanes

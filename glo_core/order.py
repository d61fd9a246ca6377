"""Who owns which image, and in which order an epoch visits them: pure functions that return integer arrays.

    image id --mod S--> code shard --mod L--> lane --contiguous ranges--> rank

Nothing here knows a rank's order or the world size when it deals an epoch: one worker and eight see the
same global batches.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from glo_core.hashing import Int64Array, key64, mix64


class LaneEpoch(NamedTuple):
    """One lane's rows of an epoch. Axes: [step, place in the step]."""

    rows: Int64Array
    """Index into the lane's ids, int64 `[steps, rows_per_step]`."""
    live: npt.NDArray[np.bool_]
    """False where a row is repeated only to keep the shape: no loss, no update. bool `[steps, rows_per_step]`."""


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


def steps_per_epoch(lane_sizes: Int64Array, rows_per_step: int) -> int:
    """T = ceil(most rows of a lane / rows of a lane in a step). `lane_sizes`: int64 `[lanes]`."""
    return math.ceil(int(lane_sizes.max(initial=0)) / rows_per_step)


def images_before_step(lane_sizes: Int64Array, steps: int) -> Int64Array:
    """Images that an epoch has seen before each step, over all lanes. int64 `[steps + 1]`; the last is their sum."""
    # Lane l has dealt floor(t n_l / T) rows before step t.
    return (np.arange(steps + 1, dtype=np.int64)[:, None] * lane_sizes // max(steps, 1)).sum(axis=1)


def lane_epoch(
    ids: Int64Array,
    *,
    steps: int,
    rows_per_step: int,
    seed: int,
    epoch: int,
    lane: int,
    snapshot: str,
    window: int = 0,
) -> LaneEpoch:
    """Deal a lane's rows evenly over the steps of an epoch, each row exactly once.

    Args:
        ids: image ids of the lane (of this window), int64 `[n]`, in any order. The order dealt depends on
            the ids themselves, not on where they stand.
        steps: T of the epoch, from `steps_per_epoch`.
        rows_per_step: B / L.
        snapshot: digest of the dataset's snapshot.
    """
    n = len(ids)
    if n == 0:  # A lane without images keeps its place in the batch, with nothing live in it.
        shape = (steps, rows_per_step)
        return LaneEpoch(np.zeros(shape, np.int64), np.zeros(shape, np.bool_))
    order = np.argsort(mix64(key64("epoch", seed, epoch, lane, window, snapshot), ids)).astype(np.int64)
    starts = np.arange(steps + 1, dtype=np.int64) * n // steps
    places = starts[:-1, None] + np.arange(rows_per_step, dtype=np.int64)
    return LaneEpoch(rows=order[places % n], live=places < starts[1:, None])

"""The order in which an epoch visits the images of a lane: pure functions that return integer arrays.

Nothing here knows a rank or the world size: one worker and eight see the same global batches.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from glo_core.common.arrays import Int64Array
from glo_core.common.counter_rng import key64, mix64


class LaneEpoch(NamedTuple):
    """One lane's rows of an epoch. Axes: [step, place in the step]."""

    rows: Int64Array
    """Index into the lane's ids, int64 `[steps, rows_per_step]`."""
    valid: npt.NDArray[np.bool_]
    """False where a row is repeated only to keep the shape: no loss, no update. bool `[steps, rows_per_step]`."""


def steps_per_epoch(lane_sizes: Int64Array, rows_per_step: int) -> int:
    """T = ceil(most rows of a lane / rows of a lane in a step). `lane_sizes`: int64 `[lanes]`."""
    return math.ceil(int(lane_sizes.max(initial=0)) / rows_per_step)


def images_before_step(lane_sizes: Int64Array, steps: int) -> Int64Array:
    """Images that an epoch has seen before each step, over all lanes. int64 `[steps + 1]`; the last is their sum."""
    # Lane l has dealt floor(t n_l / T) rows before step t.
    return (np.arange(steps + 1, dtype=np.int64)[:, None] * lane_sizes // max(steps, 1)).sum(axis=1)


class LaneOrder:
    """The order of one lane's rows in an epoch, dealt evenly over its steps, each row exactly once.

    An epoch permutes the windows of the lane, and the rows within each window. The default is one window, the
    whole lane. What is dealt depends on the ids themselves, not on who deals it.
    """

    def __init__(
        self,
        ids: Int64Array,
        *,
        steps: int,
        rows_per_step: int,
        seed: int,
        epoch: int,
        lane: int,
        snapshot: str,
        window: int | None = None,
    ) -> None:
        """Order `ids`.

        Args:
            ids: image ids of the lane, int64 `[n]`, as they lie in the code table.
            steps: T of the epoch, from `steps_per_epoch`.
            rows_per_step: B / L.
            snapshot: digest of the dataset's snapshot.
            window: rows of a window; None for the whole lane.
        """
        self._ids, self._steps, self._rows_per_step = ids, steps, rows_per_step
        self._key = ("epoch", seed, epoch, lane), snapshot
        self._window = window or max(len(ids), 1)
        count = -(-len(ids) // self._window)
        numbers = np.arange(count, dtype=np.int64)
        self.windows: Int64Array = np.argsort(mix64(key64("windows", seed, epoch, lane, snapshot), numbers))
        """Numbers of the windows in the order of their visits, int64"""
        lengths = np.minimum(len(ids) - self.windows * self._window, self._window)
        self._ends = np.cumsum(lengths)
        self._visited: tuple[int, Int64Array] = (-1, np.empty(0, np.int64))

    def assign(self, first: int, last: int) -> LaneEpoch:
        """Rows of the steps from `first` to before `last`, as indices into the lane's ids."""
        n, shape = len(self._ids), (last - first, self._rows_per_step)
        if n == 0:  # A lane without images keeps its place in the batch, with nothing valid in it.
            return LaneEpoch(np.zeros(shape, np.int64), np.zeros(shape, np.bool_))
        starts = np.arange(first, last + 1, dtype=np.int64) * n // self._steps
        places = starts[:-1, None] + np.arange(self._rows_per_step, dtype=np.int64)
        valid = places < starts[1:, None]
        # Padding repeats a row of the same step, or the row that comes next.
        places = np.minimum(places, np.maximum(starts[1:] - 1, starts[:-1])[:, None])
        return LaneEpoch(self._rows(int(places[0, 0]), int(places.max()) + 1)[places - places[0, 0]], valid)

    def _rows(self, first: int, last: int) -> Int64Array:
        """The rows at the places from `first` to before `last` of the epoch."""
        begin, end = np.searchsorted(self._ends, [first, last - 1], side="right").tolist()
        visits = range(begin, end + 1)
        rows = np.concatenate([self._permuted(visit) for visit in visits])
        before = int(self._ends[visits[0] - 1]) if visits[0] else 0
        return rows[first - before : last - before]

    def _permuted(self, visit: int) -> Int64Array:
        """The rows of one window in the order in which they are assigned."""
        if self._visited[0] != visit:
            number = int(self.windows[visit])
            first, (key, snapshot) = number * self._window, self._key
            ids = self._ids[first : first + self._window]
            self._visited = visit, first + np.argsort(mix64(key64(*key, number, snapshot), ids)).astype(np.int64)
        return self._visited[1]

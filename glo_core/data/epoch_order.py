"""The order in which an epoch visits the images of a lane: pure functions that return integer arrays.

Nothing here knows a rank or the world size: one worker and eight see the same global batches.
"""

import math
from typing import NamedTuple

import numpy as np

from glo_core.common.arrays import Bool, BoolArray, Int, Int64Array
from glo_core.common.counter_rng import key64, mix64


class LaneEpoch(NamedTuple):
    """Rows of steps of an epoch. Axes: [step, row of the step]; of a single step [row]."""

    rows: Int[Int64Array, "*steps rows_per_step"]
    """Indices into the lane's ids, int64 `[steps, rows_per_step]`"""
    valid: Bool[BoolArray, "*steps rows_per_step"]
    """False for padding, which has no loss and no update; bool `[steps, rows_per_step]`"""


def steps_per_epoch(lane_sizes: Int[Int64Array, " lanes"], rows_per_step: int) -> int:
    """T = ceil(max_l n_l / r), for lanes of n_l rows (`lane_sizes`, int64 `[lanes]`) of which a step takes r each."""
    return math.ceil(int(lane_sizes.max(initial=0)) / rows_per_step)


def images_before_step(lane_sizes: Int[Int64Array, " lanes"], steps: int) -> Int[Int64Array, " {steps}+1"]:
    """The number of images that an epoch of T steps has seen before each step t, over all lanes.

    sum_l floor(t n_l / T), int64 `[steps + 1]`; the last entry is the number of all images.
    """
    # Axes [step t, lane l], summed over the lanes.
    return (np.arange(steps + 1, dtype=np.int64)[:, None] * lane_sizes // max(steps, 1)).sum(axis=1)


class LaneOrder:
    """The order of one lane's rows in an epoch: each row exactly once, spread evenly over the steps.

    An epoch permutes the windows of the lane, and the rows within each window. The default is one window, the
    whole lane. The order depends on the image ids, and not on the rank that computes it.
    """

    def __init__(
        self,
        ids: Int[Int64Array, " n"],
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
            ids: image ids of the lane, int64 `[n]`, in the order of the code table.
            steps: T of the epoch, from `steps_per_epoch`.
            rows_per_step: B / L, for batches of B images and L lanes.
            seed: of the order of training.
            epoch: its number.
            lane: its number.
            snapshot: digest of the dataset's snapshot.
            window: rows of a window; None for the whole lane.
        """
        self._ids, self._steps, self._rows_per_step = ids, steps, rows_per_step
        self._key = ("epoch", seed, epoch, lane), snapshot
        self._window = window or max(len(ids), 1)
        # Windows of the lane: ceil(n / window).
        count = -(-len(ids) // self._window)
        numbers = np.arange(count, dtype=np.int64)
        # Axis [visit], for `windows`, `lengths` and `_ends`.
        self.windows: Int64Array = np.argsort(mix64(key64("windows", seed, epoch, lane, snapshot), numbers))
        """Numbers of the windows in the order of their visits, int64 `[windows]`"""
        lengths = np.minimum(len(ids) - self.windows * self._window, self._window)
        self._ends = np.cumsum(lengths)
        """Rows that the epoch has visited after each visit of a window"""
        self._permutation: tuple[int, Int64Array] = (-1, np.empty(0, np.int64))
        """The last visit whose rows were permuted, and these rows"""

    def assign(self, first: int, last: int) -> LaneEpoch:
        """Rows of the steps from `first` to before `last`, as indices into the lane's ids.

        Step t takes the rows at the positions from floor(t n / T) to before floor((t + 1) n / T) of the epoch.
        """
        n, shape = len(self._ids), (last - first, self._rows_per_step)
        if n == 0:  # A lane without images has padding in every step.
            return LaneEpoch(np.zeros(shape, np.int64), np.zeros(shape, np.bool_))
        # Axis [step, and the end]: the position in the epoch at which each step begins.
        starts = np.arange(first, last + 1, dtype=np.int64) * n // self._steps
        # Axes [step, row of the step]: positions in the epoch.
        positions = starts[:-1, None] + np.arange(self._rows_per_step, dtype=np.int64)
        valid = positions < starts[1:, None]
        # Padding repeats the last row of its step, or, in a step without rows, the row that comes next.
        positions = np.minimum(positions, np.maximum(starts[1:] - 1, starts[:-1])[:, None])
        # Axis [position, from that of the first row on].
        rows = self._rows(int(positions[0, 0]), int(positions.max()) + 1)
        return LaneEpoch(rows[positions - positions[0, 0]], valid)

    def _rows(self, first: int, last: int) -> Int[Int64Array, " {last}-{first}"]:
        """The rows at the positions from `first` to before `last` of the epoch."""
        # The visits that hold the first and the last position; visit v holds those from ends[v - 1] to before ends[v].
        begin, end = np.searchsorted(self._ends, [first, last - 1], side="right").tolist()
        visits = range(begin, end + 1)
        rows = np.concatenate([self._permuted(visit) for visit in visits])
        # Axis [position, from that of the first row of these visits on].
        offset = int(self._ends[visits[0] - 1]) if visits[0] else 0
        return rows[first - offset : last - offset]

    def _permuted(self, visit: int) -> Int[Int64Array, " _"]:
        """The rows of one visit's window in the order in which they are assigned to steps."""
        if self._permutation[0] != visit:
            number = int(self.windows[visit])
            first, (key, snapshot) = number * self._window, self._key
            ids = self._ids[first : first + self._window]
            # Axis [row of the window]: sorted by the hash of the image id.
            self._permutation = visit, first + np.argsort(mix64(key64(*key, number, snapshot), ids)).astype(np.int64)
        return self._permutation[1]

"""Order and ownership as properties: every image once an epoch, the same batches at every world size."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glo_core.common.arrays import Int64Array
from glo_core.data import epoch_order as order
from glo_core.data import lanes as lanes_module

shards_and_batch = st.tuples(st.sampled_from([1, 2, 8, 32]), st.integers(1, 96))


@given(shards_and_batch)
def test_lanes_partition_the_shards(case: tuple[int, int]) -> None:
    shards, batch = case
    lanes = lanes_module.num_lanes(shards, batch)
    of_lanes = [lanes_module.shards_of_lane(lane, code_shards=shards, lanes=lanes) for lane in range(lanes)]
    assert sorted(np.concatenate(of_lanes)) == list(range(shards))
    assert batch % lanes == 0


@given(st.integers(1, 64), st.data())
def test_ranks_partition_the_lanes_in_order(lanes: int, data: st.DataObject) -> None:
    world = data.draw(st.integers(1, lanes))
    owned = [lanes_module.lanes_of_rank(rank, world_size=world, lanes=lanes) for rank in range(world)]
    assert np.concatenate(owned).tolist() == list(range(lanes))
    busiest = max(len(of_rank) for of_rank in owned)
    assert lanes_module.overload(world_size=world, lanes=lanes) == pytest.approx(busiest * world / lanes)


def test_more_ranks_than_lanes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`world_size` \(=5\) must be from 1 to the number of lanes \(=4\)"):
        lanes_module.lanes_of_rank(0, world_size=5, lanes=4)


class OrderKey(NamedTuple):
    """What the order of a lane's ids in an epoch depends on."""

    seed: int = 0
    epoch: int = 0
    lane: int = 0
    window: int | None = None
    snapshot: str = "a"


def lane_epoch(ids: Int64Array, steps: int, rows_per_step: int, key: OrderKey) -> order.LaneEpoch:
    return order.LaneOrder(ids, steps=steps, rows_per_step=rows_per_step, **key._asdict()).assign(0, steps)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 6), st.integers(0, 3), st.integers(0, 9))
def test_an_epoch_assigns_every_row_once_and_evenly(
    sizes: list[int], rows_per_step: int, epoch: int, window: int
) -> None:
    lane_sizes = np.array(sizes, np.int64)
    steps = order.steps_per_epoch(lane_sizes, rows_per_step)
    valid = np.zeros(steps, np.int64)
    for lane, size in enumerate(sizes):
        ids = np.arange(size, dtype=np.int64) * len(sizes) + lane
        lane_order = order.LaneOrder(
            ids,
            steps=steps,
            rows_per_step=rows_per_step,
            seed=1,
            epoch=epoch,
            lane=lane,
            snapshot="a",
            window=window,
        )
        assigned = lane_order.assign(0, steps)
        for step in range(steps):  # Step by step is the same as all at once.
            assert np.array_equal(lane_order.assign(step, step + 1).rows[0], assigned.rows[step])
        if window:  # One window after the other, each one whole.
            met = (assigned.rows[assigned.valid] // window).tolist()
            assert list(dict.fromkeys(met)) == lane_order.windows.tolist()
            assert sum(a != b for a, b in itertools.pairwise(met)) == max(len(lane_order.windows) - 1, 0)
            # Padding reads no window that its step does not need, or needs next.
            for rows, mask in zip(assigned.rows, assigned.valid, strict=True):
                assert not mask.any() or set(rows // window) == set(rows[mask] // window)
        assert assigned.rows.shape == assigned.valid.shape == (steps, rows_per_step)
        assert sorted(assigned.rows[assigned.valid]) == list(range(size))
        per_step = assigned.valid.sum(axis=1)
        assert steps == 0 or per_step.max() - per_step.min() <= 1
        valid += per_step
    assert order.images_before_step(lane_sizes, steps).tolist() == [0, *np.cumsum(valid)][: steps + 1]


def test_the_order_depends_on_ids_and_not_on_where_they_stand() -> None:
    ids = np.array([3, 11, 19, 27, 35], np.int64)
    shuffled = ids[[4, 2, 0, 1, 3]]

    def visits(of: Int64Array) -> list[int]:
        assigned = lane_epoch(of, 5, 1, OrderKey(lane=3))
        return of[assigned.rows[assigned.valid]].tolist()

    assert visits(ids) == visits(shuffled)


@pytest.mark.parametrize(
    "key", [OrderKey(seed=1), OrderKey(epoch=1), OrderKey(lane=1), OrderKey(window=8), OrderKey(snapshot="b")]
)
def test_the_order_changes_with_each_of_its_arguments(key: OrderKey) -> None:
    ids = np.arange(64, dtype=np.int64)
    assert not np.array_equal(lane_epoch(ids, 16, 4, OrderKey()).rows, lane_epoch(ids, 16, 4, key).rows)


def test_the_order_is_the_one_that_earlier_versions_assigned() -> None:
    assigned = lane_epoch(np.arange(10, dtype=np.int64), 5, 2, OrderKey(snapshot="golden"))
    assert assigned.rows.ravel().tolist() == GOLDEN_ORDER


GOLDEN_ORDER = [9, 5, 4, 7, 1, 2, 0, 3, 6, 8]

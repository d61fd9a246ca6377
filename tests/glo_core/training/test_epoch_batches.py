"""The order of training over ranks: W ranks together see the global batches that one rank sees, at every W."""

from collections.abc import Iterator
from typing import Literal, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import glo_core as glo
from glo_core.common.arrays import Int64Array
from glo_core.data.lanes import lanes_of_rank, num_lanes
from glo_core.training import epoch_batches
from glo_core.training.auto_config import resolve_defaults
from glo_core.training.batch import Batch
from glo_core.training.epoch_batches import EpochBatches

MOST_IN_LANE = 14


class OneOfRanks(glo.SingleProcess):
    """A rank whose sum over ranks is known: the images of every lane, int64 `[lanes]`."""

    def __init__(self, rank: int, world_size: int, lane_sizes: Int64Array) -> None:
        super().__init__()
        self.rank, self.world_size = rank, world_size
        self.lane_sizes = torch.from_numpy(lane_sizes)

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        lanes = lanes_of_rank(self.rank, world_size=self.world_size, lanes=len(self.lane_sizes))
        own = torch.zeros_like(self.lane_sizes)
        own[lanes] = self.lane_sizes[lanes]
        assert torch.equal(tensor, own)  # The ranks' parts add up to `lane_sizes` if each gives its own lanes.
        return self.lane_sizes


class Case(NamedTuple):
    """A dataset, a batch size, and where to look into its order."""

    ids: Int64Array
    code_shards: int
    batch_size: int
    window: int | None
    epoch: int
    first: int
    """Step to resume from, modulo the steps of an epoch"""
    cache: Literal["host", "disk"]

    @property
    def lanes(self) -> int:
        return num_lanes(self.code_shards, self.batch_size)

    @property
    def rows_per_step(self) -> int:
        return self.batch_size // self.lanes

    @property
    def lane_sizes(self) -> Int64Array:
        return np.bincount(self.ids % self.lanes, minlength=self.lanes)

    def images(self) -> glo.TensorImages:
        """Images whose first two pixels are their id, its low byte first."""
        pixels = np.zeros((len(self.ids), 8, 8, 1), np.uint8)
        pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = self.ids % 256, self.ids // 256
        return glo.TensorImages(torch.from_numpy(pixels), self.ids, code_shards=self.code_shards)

    def rank(self, rank: int, world_size: int) -> EpochBatches:
        config = glo.TrainConfig(batch_size=self.batch_size, window=self.window, seed=5)
        resolved = resolve_defaults(config, num_images=len(self.ids), resolution=8)
        return EpochBatches(resolved, self.images(), OneOfRanks(rank, world_size, self.lane_sizes), self.cache)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Ids with holes, lanes that are uneven and may be empty, windows shorter than a lane."""
    code_shards = draw(st.sampled_from([1, 2, 4, 8]))
    # Multiples of a divisor of S: any number would seldom have more than two lanes.
    batch_size = draw(st.integers(1, 3)) * 2 ** draw(st.integers(0, code_shards.bit_length() - 1))
    lanes = num_lanes(code_shards, batch_size)
    sizes = draw(st.lists(st.integers(0, MOST_IN_LANE), min_size=lanes, max_size=lanes).filter(any))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    # Lane l holds ids l + L k; about two of three k are holes.
    of_lanes = [lane + lanes * random.choice(3 * MOST_IN_LANE, size, False) for lane, size in enumerate(sizes)]
    ids = np.sort(np.concatenate(of_lanes)).astype(np.int64)
    longest, rows_per_step = max(sizes), batch_size // lanes
    windows = st.integers(rows_per_step, max(rows_per_step, longest - 1))
    return Case(
        ids,
        code_shards,
        batch_size,
        window=draw(st.one_of(st.none(), windows)),
        epoch=draw(st.integers(0, 1000)),
        first=draw(st.integers(0, 100)),
        cache=draw(st.sampled_from(["host", "disk"])),
    )


def steps_of(epochs: EpochBatches, epoch: int, first: int) -> Iterator[tuple[list[int], list[bool]]]:
    """Ids and mask of this rank's part of each step."""
    for batch in epochs.batches(epochs.orders(epoch), first):
        ids = epochs.images.ids[batch.rows.on_host]
        assert_images_are_those_of(batch, ids)
        yield ids.tolist(), batch.rows.valid.tolist()


def assert_images_are_those_of(batch: Batch, ids: Int64Array) -> None:
    pixels = batch.images.numpy().astype(np.int64)
    assert (pixels[:, 0, 0, 0] + 256 * pixels[:, 0, 1, 0]).tolist() == ids.tolist()


def global_steps(case: Case, world_size: int, epoch: int, first: int) -> list[tuple[list[int], list[bool]]]:
    """Ids and mask of each global batch. The rows of a lane without images may be any: they are -1 here."""
    of_ranks = [list(steps_of(case.rank(rank, world_size), epoch, first)) for rank in range(world_size)]
    lane_of_place = np.repeat(np.arange(case.lanes), case.rows_per_step)
    empty = case.lane_sizes[lane_of_place] == 0
    together = []
    for parts in zip(*of_ranks, strict=True):
        ids = np.concatenate([ids for ids, _ in parts])
        valid = np.concatenate([valid for _, valid in parts])
        assert not valid[empty].any()
        together.append((np.where(empty, -1, ids).tolist(), valid.tolist()))
    return together


def ranks_hold_images(case: Case, world_size: int) -> bool:
    return all(
        case.lane_sizes[lanes_of_rank(rank, world_size=world_size, lanes=case.lanes)].sum()
        for rank in range(world_size)
    )


@settings(max_examples=60)
@given(cases(), st.integers(1, 5))
def test_every_world_size_sees_the_global_batches_of_one_rank(case: Case, assigned_steps: int) -> None:
    with mock.patch.object(epoch_batches, "ASSIGNED_STEPS", assigned_steps):
        alone = {epoch: global_steps(case, 1, epoch, 0) for epoch in (case.epoch, case.epoch + 1)}
        for steps in alone.values():
            assert all(len(ids) == case.batch_size for ids, _ in steps)
            seen = [i for ids, mask in steps for i, valid in zip(ids, mask, strict=True) if valid]
            assert sorted(seen) == case.ids.tolist()  # Each image once an epoch.
        middle = case.first % len(alone[case.epoch])
        for world_size in range(1, case.lanes + 1):
            if not ranks_hold_images(case, world_size):
                continue
            for epoch, steps in alone.items():
                assert global_steps(case, world_size, epoch, 0) == steps
            assert global_steps(case, world_size, case.epoch, middle) == alone[case.epoch][middle:]


@settings(max_examples=60)
@given(cases())
def test_every_rank_refuses_a_world_size_that_leaves_a_rank_without_images(case: Case) -> None:
    for world_size in range(1, case.lanes + 1):
        if ranks_hold_images(case, world_size):
            continue
        for rank in range(world_size):
            with pytest.raises(glo.UserError, match=rf"`workers` \(={world_size}\): worker \d+ would hold none"):
                case.rank(rank, world_size)


@settings(max_examples=60)
@given(cases())
def test_the_clock_counts_the_valid_rows_of_each_step(case: Case) -> None:
    before = case.rank(0, 1).images_before
    valid = [sum(mask) for _, mask in global_steps(case, 1, case.epoch, 0)]
    assert np.diff(before).tolist() == valid
    assert before[0] == 0

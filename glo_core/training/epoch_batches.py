"""A rank's share of the order of training: its lanes, their images, and the rows of each step."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from glo_core.codes.table import Table
from glo_core.common.errors import UserError
from glo_core.common.runtime import Runtime
from glo_core.common.shapes import Float, Tensor
from glo_core.data.config import Cache
from glo_core.data.epoch_order import LaneEpoch, LaneOrder, images_before_step, steps_per_epoch
from glo_core.data.image_cache import ResidentImages, place_images
from glo_core.data.image_source import ImageSource
from glo_core.data.lanes import lanes_of_rank, num_lanes, shards_of_lane
from glo_core.training.config import ResolvedTrainConfig
from glo_core.training.learner import Batch, Learner

STATISTICS_STEPS = 16
"""Batches over which the averaged decoder's running statistics are recomputed."""
ASSIGNED_STEPS = 256
"""Steps whose rows are dealt together."""


class EpochBatches:
    """This rank's share of the order of training."""

    def __init__(
        self, config: ResolvedTrainConfig, images: ImageSource, runtime: Runtime, cache: Cache = "disk"
    ) -> None:
        """Share `images` (all shards) out by lanes, and keep this rank's where `cache` says.

        Raises:
            UserError: if there are more ranks than lanes, or no images.
        """
        self.config, self.snapshot = config, images.snapshot
        self.lanes = num_lanes(images.code_shards, config.batch_size)
        if runtime.world_size > self.lanes:
            raise UserError(too_many_workers(runtime.world_size, images.code_shards, config.batch_size))
        self.rows_per_step = config.batch_size // self.lanes
        self.mine = lanes_of_rank(runtime.rank, world_size=runtime.world_size, lanes=self.lanes)
        shards = [shards_of_lane(int(lane), code_shards=images.code_shards, lanes=self.lanes) for lane in self.mine]
        mine = images.select([int(shard) for of_lane in shards for shard in of_lane])
        self.images = place_images(mine, cache, runtime.device, runtime.world_size)
        lane_of_row = self.images.ids % self.lanes
        sizes = torch.zeros(self.lanes, dtype=torch.int64)
        sizes += torch.from_numpy(np.bincount(lane_of_row, minlength=self.lanes))
        self.sizes = runtime.all_reduce_sum(sizes.to(runtime.device)).cpu().numpy()
        if not self.sizes.sum():
            raise UserError("the dataset has no training image; preprocess a folder that has some")
        for rank in range(runtime.world_size):
            if not self.sizes[lanes_of_rank(rank, world_size=runtime.world_size, lanes=self.lanes)].sum():
                raise UserError(
                    f"`workers` (={runtime.world_size}): worker {rank} would hold none of the "
                    f"{self.sizes.sum()} images; use fewer workers"
                )
        self.first = np.concatenate([[0], np.cumsum(self.sizes[self.mine])])
        """First row of each of this rank's lanes in its table, and the end"""
        self.steps = steps_per_epoch(self.sizes, self.rows_per_step)
        self.images_before = images_before_step(self.sizes, self.steps)

    def orders(self, epoch: int) -> list[LaneOrder]:
        """The order of each of this rank's lanes."""
        return [
            LaneOrder(
                self.images.ids[self.first[i] : self.first[i + 1]],
                steps=self.steps,
                rows_per_step=self.rows_per_step,
                seed=self.config.seed,
                epoch=epoch,
                lane=int(lane),
                snapshot=self.snapshot,
                window=self.config.window,
            )
            for i, lane in enumerate(self.mine)
        ]

    def steps_from(self, orders: Sequence[LaneOrder], first: int) -> Iterator[LaneEpoch]:
        """Rows and valid of each step from `first` to the epoch's end, each `[b]`."""
        for start in range(first, self.steps, ASSIGNED_STEPS):
            assigned = self.assign(orders, start, min(start + ASSIGNED_STEPS, self.steps))
            yield from map(LaneEpoch, assigned.rows, assigned.valid)

    def batches(self, orders: Sequence[LaneOrder], first: int) -> Iterator[Batch]:
        """Batches of the steps from `first` to the epoch's end; mapped blocks are read a step ahead, on a thread."""
        steps = self.steps_from(orders, first)
        if isinstance(self.images, ResidentImages):
            yield from (Batch(self.images.take(rows), rows, valid) for rows, valid in steps)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="images") as pool:
            coming = ((pool.submit(self.images.take, rows), rows, valid) for rows, valid in steps)
            now = next(coming, None)
            while now is not None:
                ahead = next(coming, None)
                yield Batch(now[0].result(), *now[1:])
                now = ahead

    def assign(self, orders: Sequence[LaneOrder], first: int, last: int) -> LaneEpoch:
        """Rows of this rank's table and which are valid, `[last - first, b]`, of the steps `first` to before `last`."""
        assigned = [of_lane.assign(first, last) for of_lane in orders]
        rows = np.concatenate([lane.rows + self.first[i] for i, lane in enumerate(assigned)], axis=1)
        # A lane without images points past its end: any row will do, since none of them is valid.
        rows = np.minimum(rows, max(len(self.images.ids) - 1, 0))
        return LaneEpoch(rows, np.concatenate([lane.valid for lane in assigned], axis=1))

    def batches_of_codes(
        self, table: Table, steps: int
    ) -> Iterator[tuple[Float[Tensor, "b dim"], Float[Tensor, " b"]]]:
        """Codes `[b, dim]` and mask `[b]`, 1 for valid rows, of the first `steps` steps of epoch 0."""
        raw = table.resident.raw
        for rows, valid in itertools.islice(self.steps_from(self.orders(0), 0), steps):
            yield table.codes(torch.from_numpy(rows)), torch.from_numpy(valid).to(raw.device, raw.dtype)


def refresh_statistics(learner: Learner, epochs: EpochBatches) -> None:
    """Recompute the running statistics of the averaged decoder over the first batches of epoch 0."""
    learner.ema.refresh_statistics(epochs.batches_of_codes(learner.table, STATISTICS_STEPS), learner.runtime)


def too_many_workers(workers: int, code_shards: int, batch_size: int) -> str:
    """The line about more workers than lanes."""
    lanes = num_lanes(code_shards, batch_size)
    return (
        f"`workers` (={workers}) is more than the {lanes} lanes of `code_shards` (={code_shards}) and "
        f"`batch_size` (={batch_size}); use at most {lanes} workers"
    )

"""A rank's share of the order of training: its lanes, their images, and the rows of each step."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from glo_core.codes.table import Table
from glo_core.common.errors import ConfigError, DatasetError
from glo_core.common.runtime import Runtime
from glo_core.common.shapes import Float, Tensor
from glo_core.data.config import Cache
from glo_core.data.epoch_order import LaneEpoch, LaneOrder, images_before_step, steps_per_epoch
from glo_core.data.image_cache import ResidentImages, place_images
from glo_core.data.image_source import ImageSource
from glo_core.data.lanes import lanes_of_rank, num_lanes, shards_of_lane
from glo_core.data.read_ahead import ReadAhead
from glo_core.decoder.batch_norm import merge_running_statistics
from glo_core.training.batch import Batch, StepRows, upload
from glo_core.training.config import ResolvedTrainConfig
from glo_core.training.learner import DTYPES, Learner

STATISTICS_STEPS = 16
"""Batches over which the EMA decoder's running statistics are recomputed"""
ASSIGNED_STEPS = 256
"""Steps whose rows are assigned together"""


class EpochBatches:
    """This rank's share of the order of training: the batches of an epoch's steps."""

    def __init__(
        self,
        config: ResolvedTrainConfig,
        images: ImageSource,
        runtime: Runtime,
        cache: Cache = "disk",
        *,
        reserved: int = 0,
    ) -> None:
        """Take the lanes of this rank, and copy their images to where `cache` says. Every rank calls this.

        Args:
            config: the recipe.
            images: of all code shards.
            runtime: this rank and its connection to the others.
            cache: where this rank's images lie; see `place_images`.
            reserved: bytes of the device that training itself will need.

        Raises:
            ConfigError: if there are more ranks than lanes, or a rank has no image.
            DatasetError: if there is no image at all.
        """
        self.config, self.snapshot, self.device = config, images.snapshot, runtime.device
        self.lanes = num_lanes(images.code_shards, config.batch_size)
        if runtime.world_size > self.lanes:
            raise ConfigError(too_many_workers(runtime.world_size, images.code_shards, config.batch_size))
        self.rows_per_step = config.batch_size // self.lanes
        self.own_lanes = lanes_of_rank(runtime.rank, world_size=runtime.world_size, lanes=self.lanes)
        """Numbers of this rank's lanes, int64"""
        self.rows = len(self.own_lanes) * self.rows_per_step
        """Rows of this rank in a step"""
        own_images = images.select(self._own_shards(images.code_shards))
        self.images = place_images(own_images, cache, runtime.device, runtime.world_size, reserved=reserved)
        # Since L divides S, an image's lane is id mod L. Axis [row].
        lane_of_row = self.images.ids % self.lanes
        # Axis [lane], of all ranks: its number of images.
        sizes = torch.zeros(self.lanes, dtype=torch.int64)
        sizes += torch.from_numpy(np.bincount(lane_of_row, minlength=self.lanes))
        self.sizes = runtime.all_reduce_sum(sizes.to(runtime.device)).cpu().numpy()
        if not self.sizes.sum():
            raise DatasetError("the dataset has no training image; preprocess a folder that has some")
        for rank in range(runtime.world_size):
            if not self.sizes[lanes_of_rank(rank, world_size=runtime.world_size, lanes=self.lanes)].sum():
                raise ConfigError(
                    f"`workers` (={runtime.world_size}): worker {rank} would hold none of the "
                    f"{self.sizes.sum()} images; use fewer workers"
                )
        self.first = np.concatenate([[0], np.cumsum(self.sizes[self.own_lanes])])
        """First row of each of this rank's lanes in its table, and the end, int64 `[own lanes + 1]`"""
        self.steps = steps_per_epoch(self.sizes, self.rows_per_step)
        self.images_before = images_before_step(self.sizes, self.steps)
        """Images that an epoch has seen before each step, over all ranks, int64 `[steps + 1]`"""

    def _own_shards(self, code_shards: int) -> list[int]:
        """The code shards of this rank's lanes, lane by lane: the order of the rows of its table."""
        lanes = [shards_of_lane(int(lane), code_shards=code_shards, lanes=self.lanes) for lane in self.own_lanes]
        return [int(shard) for shards in lanes for shard in shards]

    def orders(self, epoch: int) -> list[LaneOrder]:
        """The order of each of this rank's lanes in `epoch`."""
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
            for i, lane in enumerate(self.own_lanes)
        ]

    def steps_from(self, orders: Sequence[LaneOrder], first: int) -> Iterator[StepRows]:
        """This rank's rows of each step from `first` to the epoch's end."""
        for start in range(first, self.steps, ASSIGNED_STEPS):
            assigned = self.assign(orders, start, min(start + ASSIGNED_STEPS, self.steps))
            yield from upload(assigned, self.device, DTYPES[self.config.precision])

    def batches(self, orders: Sequence[LaneOrder], first: int) -> Iterator[Batch]:
        """The batches of the steps from `first` to the epoch's end; a thread reads images that are not resident."""
        steps = self.steps_from(orders, first)
        images = self.images
        if isinstance(images, ResidentImages) and images.complete and images.device == self.device:
            yield from (Batch(images.at(rows.on_device), rows) for rows in steps)
            return
        steps, again = itertools.tee(steps)
        read = ReadAhead(images, self.device).batches(rows.on_host for rows in again)
        yield from map(Batch, read, steps)

    def assign(self, orders: Sequence[LaneOrder], first: int, last: int) -> LaneEpoch:
        """Rows of this rank's table and which are valid, `[last - first, b]`, of the steps `first` to before `last`."""
        assigned = [order.assign(first, last) for order in orders]
        # Axes [step, row of the step], the lanes side by side; an index into a lane plus the lane's first row.
        rows = np.concatenate([lane.rows + self.first[i] for i, lane in enumerate(assigned)], axis=1)
        # A lane without images points past its end: any row serves, since none of them is valid.
        rows = np.minimum(rows, max(len(self.images.ids) - 1, 0))
        return LaneEpoch(rows, np.concatenate([lane.valid for lane in assigned], axis=1))

    def batches_of_codes(self, table: Table, steps: int) -> Iterator[Float[Tensor, "b dim"]]:
        """Codes `[b, dim]` of this rank's rows of the first `steps` steps of epoch 0, padding included."""
        for rows in itertools.islice(self.steps_from(self.orders(0), 0), steps):
            yield table.codes(torch.from_numpy(rows.on_host))


def refresh_statistics(learner: Learner, epochs: EpochBatches) -> None:
    """Bring the running statistics of both decoders to what a checkpoint holds; every rank calls this.

    Those of the EMA decoder are recomputed over the first `STATISTICS_STEPS` batches of epoch 0; those of the trained
    one are merged over ranks.
    """
    merge_running_statistics(learner.decoder, epochs.rows)
    learner.ema.refresh_statistics(epochs.batches_of_codes(learner.table, STATISTICS_STEPS), learner.groups)


def too_many_workers(workers: int, code_shards: int, batch_size: int) -> str:
    """One line for the user about more workers than lanes."""
    lanes = num_lanes(code_shards, batch_size)
    return (
        f"`workers` (={workers}) is more than the {lanes} lanes of `code_shards` (={code_shards}) and "
        f"`batch_size` (={batch_size}); use at most {lanes} workers"
    )

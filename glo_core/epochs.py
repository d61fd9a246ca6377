"""A rank's share of the order of training: its lanes, their images, and the rows of each step."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from glo_core import order
from glo_core.cache import Cache, ResidentImages, cached
from glo_core.codes import CodeTable, Table, raw_name
from glo_core.dataset import ImageSource
from glo_core.files import UserError, write_bytes
from glo_core.runtime import Runtime
from glo_core.start import PcaStart, chunks_of_rows, random_codes
from glo_core.step import DTYPES, Batch, TrainConfig
from glo_core.windows import WindowedTable

DEALT_STEPS = 256
"""Steps whose rows are dealt together."""


class Epochs:
    """This rank's share of the order of training."""

    def __init__(self, config: TrainConfig, images: ImageSource, runtime: Runtime, cache: Cache = "disk") -> None:
        """Share `images` (all shards) out by lanes, and keep this rank's where `cache` says.

        Raises:
            UserError: if there are more ranks than lanes, or no images.
        """
        self.config, self.snapshot = config, images.snapshot
        self.lanes = order.num_lanes(images.code_shards, config.batch_size)
        if runtime.world_size > self.lanes:
            raise UserError(too_many_workers(runtime.world_size, images.code_shards, config.batch_size))
        self.rows_per_step = config.batch_size // self.lanes
        self.mine = order.lanes_of_rank(runtime.rank, world_size=runtime.world_size, lanes=self.lanes)
        shards = [
            order.shards_of_lane(int(lane), code_shards=images.code_shards, lanes=self.lanes) for lane in self.mine
        ]
        mine = images.select([int(shard) for of_lane in shards for shard in of_lane])
        self.images = cached(mine, cache, runtime.device, runtime.world_size)
        lane_of_row = self.images.ids % self.lanes
        sizes = torch.zeros(self.lanes, dtype=torch.int64)
        sizes += torch.from_numpy(np.bincount(lane_of_row, minlength=self.lanes))
        self.sizes = runtime.all_sum(sizes.to(runtime.device)).cpu().numpy()
        if not self.sizes.sum():
            raise UserError("the dataset has no training image; preprocess a folder that has some")
        for rank in range(runtime.world_size):
            if not self.sizes[order.lanes_of_rank(rank, world_size=runtime.world_size, lanes=self.lanes)].sum():
                raise UserError(
                    f"workers={runtime.world_size}: worker {rank} would hold none of the {self.sizes.sum()} images; "
                    "use fewer workers"
                )
        self.first = np.concatenate([[0], np.cumsum(self.sizes[self.mine])])
        """First row of each of this rank's lanes in its table, and the end"""
        self.steps = order.steps_per_epoch(self.sizes, self.rows_per_step)
        self.images_before = order.images_before_step(self.sizes, self.steps)

    def orders(self, epoch: int) -> list[order.LaneOrder]:
        """The order of each of this rank's lanes."""
        return [
            order.LaneOrder(
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

    def steps_from(self, orders: Sequence[order.LaneOrder], first: int) -> Iterator[order.LaneEpoch]:
        """Rows and live of each step from `first` to the epoch's end, each `[b]`."""
        for start in range(first, self.steps, DEALT_STEPS):
            dealt = self.deal(orders, start, min(start + DEALT_STEPS, self.steps))
            yield from map(order.LaneEpoch, dealt.rows, dealt.live)

    def batches(self, orders: Sequence[order.LaneOrder], first: int) -> Iterator[Batch]:
        """Batches of the steps from `first` to the epoch's end; mapped blocks are read a step ahead, on a thread."""
        steps = self.steps_from(orders, first)
        if isinstance(self.images, ResidentImages):
            yield from (Batch(self.images.gather(rows), rows, live) for rows, live in steps)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="images") as pool:
            coming = ((pool.submit(self.images.gather, rows), rows, live) for rows, live in steps)
            now = next(coming, None)
            while now is not None:
                ahead = next(coming, None)
                yield Batch(now[0].result(), *now[1:])
                now = ahead

    def deal(self, orders: Sequence[order.LaneOrder], first: int, last: int) -> order.LaneEpoch:
        """Rows of this rank's table and which are live, `[last - first, b]`, of the steps `first` to before `last`."""
        dealt = [of_lane.deal(first, last) for of_lane in orders]
        rows = np.concatenate([lane.rows + self.first[i] for i, lane in enumerate(dealt)], axis=1)
        # A lane without images points past its end: any row will do, since none of them is live.
        rows = np.minimum(rows, max(len(self.images.ids) - 1, 0))
        return order.LaneEpoch(rows, np.concatenate([lane.live for lane in dealt], axis=1))

    def batches_of_codes(self, table: Table, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Codes `[b, dim]` and live mask `[b]` of the first `steps` steps of epoch 0."""
        raw = table.held.raw
        for rows, live in itertools.islice(self.steps_from(self.orders(0), 0), steps):
            yield table.codes(torch.from_numpy(rows)), torch.from_numpy(live).to(raw.device, raw.dtype)

    def table(self, runtime: Runtime, run: Path | None, scratch: Path | None) -> Table:
        """The codes of this rank at their start; a run keeps its PCA basis."""
        code, images, dtype = self.config.code, self.images, DTYPES[self.config.precision]
        table: Table
        if 0 < self.config.window < self.rows_per_step:
            raise UserError(
                f"window={self.config.window}: must be at least {self.rows_per_step}, the rows of a lane in a step of "
                f"batch_size={self.config.batch_size}, or 0 for all"
            )
        if self.config.window and self.sizes.max() > self.config.window:
            table = WindowedTable(
                code, images.ids, self.first, self.config.window, device=runtime.device, dtype=dtype, scratch=scratch
            )
        else:
            raw = torch.empty(len(images.ids), code.dim, device=runtime.device, dtype=dtype)
            table = CodeTable(code, images.ids, raw)
        start = _pca_start(self.config, images, runtime, run) if code.start == "pca" else None
        for rows in chunks_of_rows(images):
            if start is None:
                values = random_codes(code, images.ids[rows], self.config.seed)
            else:
                values = start.codes(code, images, rows, self.config.seed)
            table.write(int(rows[0]), {raw_name(code): values})
        return table


def _pca_start(config: TrainConfig, images: ImageSource, runtime: Runtime, run: Path | None) -> PcaStart:
    kept = run / "start.safetensors" if run is not None else None
    # All ranks must take the same branch: rank 0 decides.
    if kept is not None and runtime.gather(kept.exists())[0]:
        return PcaStart.load(kept)
    start = PcaStart.fit(images, config.code.dim, runtime)
    if kept is not None and runtime.rank == 0:
        write_bytes(kept, start.to_bytes())
    return start


def too_many_workers(workers: int, code_shards: int, batch_size: int) -> str:
    lanes = order.num_lanes(code_shards, batch_size)
    return (
        f"workers={workers} is more than the {lanes} lanes of code_shards={code_shards} and "
        f"batch_size={batch_size}; use at most {lanes} workers"
    )

"""The training loop: one clock, in images; the same for one process, torchrun and Ray Train."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from glo_core import order
from glo_core.cache import Cache, cached
from glo_core.checkpoint import Checkpoint, Position, committed, sweep_uncommitted
from glo_core.codes import PROJECTIONS, CodeTable, Table, raw_name
from glo_core.config import Config
from glo_core.dataset import ImageSource
from glo_core.decoder import SeedDecoder
from glo_core.files import UserError, differences, write_bytes, write_json
from glo_core.grid import grid, in_rows
from glo_core.hashing import key64, normal
from glo_core.meter import DivergedError, Meter
from glo_core.metrics import pca_psnr, reconstruction_psnr
from glo_core.render import decode_codes
from glo_core.runtime import Agreement, Metrics, Runtime, SingleProcess
from glo_core.start import PcaStart, chunks_of_rows, random_codes
from glo_core.step import DTYPES, Batch, Learner, TrainConfig
from glo_core.windows import WindowedTable
from glo_core.writer import CheckpointWriter

STATISTICS_STEPS = 32
"""Batches over which the averaged decoder's running statistics are recomputed."""
SHOWN = 16
"""Images in a row of a training picture."""
DEALT_STEPS = 256
"""Steps whose rows are dealt together."""
AGREE_STEPS = 8
"""Ranks agree every so many steps whether to stop, and whether a checkpoint is written."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One training of a run to a target."""

    number: int = 0
    start: int = 0
    """Images seen at its start"""
    target: int
    """Images seen at its end"""

    def rate_factor(self, images_seen: int, config: TrainConfig) -> float:
        """What the learning rates are multiplied with at `images_seen`."""
        seen = max(images_seen - self.start, 0)
        rise = min((seen + config.batch_size) / config.warm_up, 1.0) if config.warm_up else 1.0
        match config.schedule:
            case "cosine":
                return rise * 0.5 * (1 + math.cos(math.pi * min(seen / max(self.target - self.start, 1), 1)))
            case "step":
                return rise * config.decay ** (images_seen // config.decay_every)
        return rise


@dataclass(frozen=True, kw_only=True)
class Intervals(Config):
    """How often things happen, in images; none of it changes the result."""

    report: int = 10_000
    checkpoint: int = 100_000
    grid: int = 100_000
    """Pictures of the same images and of the same random codes"""

    def __post_init__(self) -> None:
        for name in ("report", "checkpoint", "grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` interval (={getattr(self, name)}) must be at least 1 image")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training leaves in memory."""

    decoder: SeedDecoder
    """With averaged weights, in eval mode"""
    table: Table
    position: Position
    metrics: Metrics
    """`psnr` and `pca_psnr` in dB, over the training images; empty after a stop"""
    finished: bool
    """False if somebody asked to stop before the target"""


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

    def deal(self, orders: Sequence[order.LaneOrder], first: int, last: int) -> order.LaneEpoch:
        """Rows of this rank's table and which are live, `[last - first, b]`, of the steps `first` to before `last`."""
        dealt = [of_lane.deal(first, last) for of_lane in orders]
        rows = np.concatenate([lane.rows + self.first[i] for i, lane in enumerate(dealt)], axis=1)
        # A lane without images points past its end: any row will do, since none of them is live.
        rows = np.minimum(rows, max(len(self.images.ids) - 1, 0))
        return order.LaneEpoch(rows, np.concatenate([lane.live for lane in dealt], axis=1))

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


def train(
    config: TrainConfig,
    images: ImageSource,
    phase: Phase,
    *,
    runtime: Runtime | None = None,
    run: Path | None = None,
    intervals: Intervals | None = None,
    scratch: Path | None = None,
    cache: Cache = "auto",
) -> Trained:
    """Train to the phase's target, going on from the run's newest checkpoint if there is one.

    Args:
        images: all shards; each rank keeps those of its lanes.
        run: directory of checkpoints and metrics; None keeps everything in memory.
        scratch: directory on a local disk for codes that `config.window` keeps out of memory.
        cache: where each rank's images lie; "auto" takes the fastest place that has room.

    Raises:
        UserError: if the checkpoint is damaged, the loss is no longer finite, or the disk is full.
    """
    runtime, intervals = runtime or SingleProcess(), intervals or Intervals()

    # Order, start and state.
    epochs = Epochs(config, images, runtime, cache)
    learner = Learner(config, epochs.images, epochs.table(runtime, run, scratch), runtime)
    position = _restore(learner, epochs, phase, run)
    meter = Meter(learner)
    stopped = False

    writer = CheckpointWriter(run, epochs.images, runtime) if run is not None else None
    agreement = Agreement(runtime)

    def checkpoint() -> None:
        meter.require_finite(position.images_seen)
        with meter.timing("checkpoint"):
            learner.averaged.refresh_statistics(_statistics_batches(learner.table, epochs), runtime)
            if writer is not None:
                writer.begin(learner, position, meter.train_psnr)

    try:
        # Epochs of steps.
        while position.images_seen < phase.target and not stopped:
            orders = epochs.orders(position.epoch)
            learner.table.begin_epoch([of_lane.windows for of_lane in orders])
            for step, (rows, live) in enumerate(epochs.steps_from(orders, position.step), position.step):
                factor = phase.rate_factor(position.images_seen, config)
                with meter.timing("data"):
                    batch = Batch(epochs.images.gather(rows), rows, live)
                sums = learner.step(batch, factor)
                before, position = position, _advance(position, epochs)
                seen = position.images_seen - before.images_seen
                learner.averaged.update(learner.decoder, position.images_seen, seen)

                # Report, checkpoint, stop: each on crossing its interval.
                done = position.images_seen >= phase.target
                meter.add(sums, seen)
                if done or _crossed(before, position, intervals.report):
                    meter.report(position.images_seen, factor)
                if step % AGREE_STEPS == 0:
                    written = writer is not None and writer.written
                    stopped, written = agreement.exchange(runtime.stop_requested(), written)
                    if written and writer is not None:
                        with meter.timing("checkpoint"):
                            writer.finish()
                if done or stopped:
                    break
                if _crossed(before, position, intervals.checkpoint):
                    checkpoint()
                if runtime.shows_pictures and _crossed(before, position, intervals.grid):
                    _show(learner, epochs, position)

        # The end: a checkpoint, and the figures over one full pass.
        checkpoint()
        if runtime.shows_pictures and position.images_seen >= phase.target:
            _show(learner, epochs, position)
    except DivergedError:
        if writer is not None:
            writer.finish()  # What was copied before is good.
        raise
    if writer is not None:
        writer.finish()
    if stopped and position.images_seen < phase.target:
        return Trained(
            decoder=learner.averaged.decoder,
            table=learner.table,
            position=position,
            metrics={},
            finished=False,
        )
    metrics = {
        "psnr": reconstruction_psnr(learner.averaged.decoder, learner.table, epochs.images, runtime),
        "pca_psnr": pca_psnr(epochs.images, config.code.dim, runtime),
    }
    if runtime.rank == 0:
        runtime.report(position.images_seen, metrics)
        if run is not None:
            write_json(
                run / "metrics" / f"{position.images_seen}.json",
                {"format_version": 1, "images_seen": position.images_seen, **metrics},
            )
    return Trained(
        decoder=learner.averaged.decoder,
        table=learner.table,
        position=position,
        metrics=metrics,
        finished=True,
    )


def _restore(learner: Learner, epochs: Epochs, phase: Phase, run: Path | None) -> Position:
    # All ranks must load the same checkpoint: rank 0 chooses.
    if run is not None and learner.runtime.rank == 0:
        sweep_uncommitted(run)
    newest = learner.runtime.gather(committed(run)[-1:] if run is not None else [])[0]
    if not newest:
        return Position(phase=phase.number)
    checkpoint = Checkpoint(newest[0])
    asked = {
        "code.dim": learner.config.code.dim,
        "code_shards": epochs.images.code_shards,
        "code.optimizer": learner.config.code.optimizer,
    }
    held = {
        "code.dim": checkpoint.code_dim,
        "code_shards": checkpoint.code_shards,
        "code.optimizer": checkpoint.optimizer,
    }
    if held != asked:
        raise UserError(
            f"{checkpoint.directory}: has other codes ({'; '.join(differences(held, asked))}); "
            "give the old values, or another run directory"
        )
    growth = checkpoint.restore(learner, epochs.images)
    position = checkpoint.position
    if position.phase == phase.number:
        if checkpoint.snapshot != epochs.snapshot or position.step >= epochs.steps:
            raise UserError(
                f"{checkpoint.directory}: is of other images or another batch size than those given (snapshot "
                f"{checkpoint.snapshot[:12]}, step {position.step} of an epoch); give the ones it was trained with"
            )
        return position
    growth.start_new_rows(learner, epochs.images)
    # A new phase begins at an epoch's boundary.
    return Position(images_seen=position.images_seen, phase=phase.number, epoch=position.epoch + 1)


def _advance(position: Position, epochs: Epochs) -> Position:
    seen = int(epochs.images_before[position.step + 1] - epochs.images_before[position.step])
    last = position.step + 1 == epochs.steps
    return Position(
        images_seen=position.images_seen + seen,
        phase=position.phase,
        epoch=position.epoch + last,
        step=0 if last else position.step + 1,
    )


def _crossed(before: Position, after: Position, interval: int) -> bool:
    return after.images_seen // interval > before.images_seen // interval


def _show(learner: Learner, epochs: Epochs, position: Position) -> None:
    """Pictures of the first images of lane 0 beside their reconstructions, and of the same random codes each time."""
    config, runtime, table = learner.config, learner.runtime, learner.table
    decoder = learner.averaged.decoder
    learner.averaged.refresh_statistics(_statistics_batches(table, epochs), runtime)
    if runtime.rank:
        return
    shown = int(min(SHOWN, epochs.first[1])) or min(SHOWN, len(epochs.images.ids))
    originals = epochs.images.gather(np.arange(shown)).cpu().numpy()
    pairs = [originals, decode_codes(decoder, table.codes(slice(0, shown)))]
    runtime.picture(position.images_seen, "training_reconstructions", grid(pairs))
    noise = torch.from_numpy(normal(key64("shown", config.seed), np.arange(2 * SHOWN), config.code.dim))
    codes = PROJECTIONS[config.code.projection](noise / config.code.dim**0.5)
    runtime.picture(position.images_seen, "training_samples", grid(in_rows(decode_codes(decoder, codes), SHOWN)))


def _statistics_batches(table: Table, epochs: Epochs) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    raw = table.held.raw
    for rows, live in itertools.islice(epochs.steps_from(epochs.orders(0), 0), STATISTICS_STEPS):
        yield table.codes(torch.from_numpy(rows)), torch.from_numpy(live).to(raw.device, raw.dtype)

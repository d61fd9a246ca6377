"""The training loop: one clock, in images; the same for one process, torchrun and Ray Train."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from glo_core.cache import Cache
from glo_core.checkpoint import Checkpoint, Position, committed, sweep_uncommitted
from glo_core.codes import PROJECTIONS, Table
from glo_core.dataset import ImageSource
from glo_core.defaults import completed
from glo_core.epochs import Epochs
from glo_core.files import UserError, write_json
from glo_core.grid import grid, in_rows
from glo_core.hashing import key64, normal
from glo_core.keeper import AGREE_STEPS, Intervals, Keeper
from glo_core.memory import keep_freed_memory
from glo_core.meter import DivergedError, Meter
from glo_core.metrics import pca_psnr, reconstruction_psnr
from glo_core.pca import Pca
from glo_core.render import decode_codes
from glo_core.runtime import Metrics, Runtime, SingleProcess
from glo_core.step import Learner, Rates, TrainConfig

STATISTICS_STEPS = 16
"""Batches over which the averaged decoder's running statistics are recomputed."""
SHOWN = 16
"""Images in a row of a training picture."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One training of a run to a target."""

    number: int = 0
    start: int = 0
    """Images seen at its start"""
    target: int
    """Images seen at its end"""

    def rates(self, images_seen: int, config: TrainConfig) -> Rates:
        """What the learning rates are multiplied with at `images_seen`."""
        seen = max(images_seen - self.start, 0)
        rise = min((seen + config.batch_size) / config.warm_up, 1.0) if config.warm_up else 1.0
        factors = {
            "cosine": 0.5 * (1 + math.cos(math.pi * min(seen / max(self.target - self.start, 1), 1))),
            "step": config.decay ** (images_seen // config.decay_every),
            "constant": 1.0,
        }
        of_codes = config.schedule if config.code.schedule == "same" else config.code.schedule
        return Rates(rise * factors[config.schedule], rise * factors[of_codes])


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training leaves in memory."""

    decoder: torch.nn.Module
    """With averaged weights, in eval mode"""
    table: Table
    position: Position
    metrics: Metrics
    """`psnr` and `pca_psnr` in dB, over the training images; empty after a stop"""
    finished: bool
    """False if somebody asked to stop before the target"""


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
    warm_start: Path | None = None,
) -> Trained:
    """Train to the phase's target, going on from the run's newest checkpoint if there is one.

    Args:
        images: all shards; each rank keeps those of its lanes.
        run: directory of checkpoints and metrics; None keeps everything in memory.
        scratch: directory on a local disk for codes that `config.window` keeps out of memory.
        cache: where each rank's images lie; "auto" takes the fastest place that has room.
        warm_start: a checkpoint of another run, whose decoder is where a run without a checkpoint starts.

    Raises:
        UserError: if the checkpoint is damaged, the loss is no longer finite, or the disk is full.
    """
    runtime, intervals = runtime or SingleProcess(), intervals or Intervals()
    config = completed(config, len(images.ids), images.resolution)

    # Order, start and state.
    if runtime.device.type == "cpu":
        keep_freed_memory()
    epochs = Epochs(config, images, runtime, cache)
    newest = _newest(config, images, runtime, run)
    learner = Learner(config, epochs.images, epochs.table(runtime, run, scratch), runtime)
    position = _restore(learner, epochs, phase, newest, warm_start)
    meter = Meter(learner)
    keeper = Keeper(learner, epochs.images, meter, intervals, run, lambda: _refresh(learner, epochs))
    stopped = False
    try:
        # Epochs of steps.
        while position.images_seen < phase.target and not stopped:
            orders = epochs.orders(position.epoch)
            learner.table.begin_epoch([of_lane.windows for of_lane in orders])
            batches = meter.waiting_for(epochs.batches(orders, position.step))
            for step, batch in enumerate(batches, position.step):
                rates = phase.rates(position.images_seen, config)
                sums = learner.step(batch, rates)
                before, position = position, _advance(position, epochs)
                seen = position.images_seen - before.images_seen
                learner.averaged.update(learner.decoder, position.images_seen, seen)

                # Report, checkpoint, show, stop: each on crossing its interval.
                done = position.images_seen >= phase.target
                meter.add(sums, seen)
                if done or _crossed(before, position, intervals.report):
                    meter.report(position.images_seen, rates)
                if step % AGREE_STEPS == 0:
                    stopped = keeper.agree(position)
                if done or stopped:
                    break
                if _crossed(before, position, intervals.checkpoint):
                    keeper.checkpoint(position)
                if runtime.shows_pictures and _crossed(before, position, intervals.grid):
                    _show(learner, epochs, position)

        # The end: a checkpoint, and the figures over one full pass.
        keeper.checkpoint(position)
        if runtime.shows_pictures and position.images_seen >= phase.target:
            _show(learner, epochs, position)
    except DivergedError:
        keeper.finish()  # What was copied before is good.
        raise
    keeper.finish()
    finished = position.images_seen >= phase.target
    return Trained(
        decoder=learner.averaged.decoder,
        table=learner.table,
        position=position,
        metrics=_figures(learner, epochs, position.images_seen, run) if finished else {},
        finished=finished,
    )


def _figures(learner: Learner, epochs: Epochs, images_seen: int, run: Path | None) -> Metrics:
    """`psnr` and `pca_psnr` over the training images: reported, and kept with the principal components."""
    runtime = learner.runtime
    pca = Pca.fit(epochs.images, learner.config.code.dim, runtime)
    metrics = {
        "psnr": reconstruction_psnr(learner.averaged.decoder, learner.table, epochs.images, runtime),
        "pca_psnr": pca_psnr(pca, epochs.images, runtime),
    }
    if runtime.rank == 0:
        runtime.report(images_seen, metrics)
        if run is not None:
            pca.save(run / "metrics" / f"{images_seen}.safetensors")
            write_json(
                run / "metrics" / f"{images_seen}.json", {"format_version": 1, "images_seen": images_seen, **metrics}
            )
    return metrics


def _newest(config: TrainConfig, images: ImageSource, runtime: Runtime, run: Path | None) -> Checkpoint | None:
    # All ranks must load the same checkpoint: rank 0 chooses.
    if run is not None and runtime.rank == 0:
        sweep_uncommitted(run)
    newest = runtime.gather(committed(run)[-1:] if run is not None else [])[0]
    if not newest:
        return None
    checkpoint = Checkpoint(newest[0])
    checkpoint.require_recipe(config, images)
    return checkpoint


def _restore(
    learner: Learner, epochs: Epochs, phase: Phase, checkpoint: Checkpoint | None, warm_start: Path | None
) -> Position:
    if checkpoint is None:
        if warm_start is not None:
            Checkpoint(warm_start).start_decoder(learner)
        return Position(phase=phase.number)
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
    return interval > 0 and after.images_seen // interval > before.images_seen // interval


def _refresh(learner: Learner, epochs: Epochs) -> None:
    batches = epochs.batches_of_codes(learner.table, STATISTICS_STEPS)
    learner.averaged.refresh_statistics(batches, learner.runtime)


def _show(learner: Learner, epochs: Epochs, position: Position) -> None:
    """Pictures of the first images of lane 0 beside their reconstructions, and of the same random codes each time."""
    config, runtime, table = learner.config, learner.runtime, learner.table
    decoder = learner.averaged.decoder
    _refresh(learner, epochs)
    if runtime.rank:
        return
    shown = int(min(SHOWN, epochs.first[1])) or min(SHOWN, len(epochs.images.ids))
    originals = epochs.images.gather(np.arange(shown)).cpu().numpy()
    pairs = [originals, decode_codes(decoder, table.codes(slice(0, shown)))]
    runtime.picture(position.images_seen, "training_reconstructions", grid(pairs))
    noise = torch.from_numpy(normal(key64("shown", config.seed), np.arange(2 * SHOWN), config.code.dim))
    codes = PROJECTIONS[config.code.projection](noise / config.code.dim**0.5)
    runtime.picture(position.images_seen, "training_samples", grid(in_rows(decode_codes(decoder, codes), SHOWN)))

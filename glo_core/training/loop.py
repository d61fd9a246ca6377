"""The training loop: one clock, in images; the same for one process, torchrun and Ray Train."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from glo_core.checkpoint.attempt import Attempt
from glo_core.checkpoint.layout import Position
from glo_core.checkpoint.pruning import forget_fitted_codes
from glo_core.codes.pca_init import PcaInit
from glo_core.codes.table import Table
from glo_core.common.errors import DivergedError
from glo_core.common.in_step import StopRequestedError
from glo_core.common.memory import keep_freed_memory
from glo_core.common.runtime import Metrics, Runtime, SingleProcess
from glo_core.data.config import Cache
from glo_core.data.dataset import Dataset
from glo_core.data.image_source import ImageSource
from glo_core.losses.weighted_sum import Loss
from glo_core.model import CodesById, Model
from glo_core.training.auto_config import resolve_defaults
from glo_core.training.checkpoint_policy import AGREE_STEPS, CheckpointPolicy
from glo_core.training.compilation import prepare_step
from glo_core.training.config import Autocast, Compile, Intervals, TrainConfig
from glo_core.training.device_memory import training_bytes
from glo_core.training.epoch_batches import EpochBatches, refresh_statistics
from glo_core.training.figures import final_figures
from glo_core.training.init_codes import InitialCodes, empty_table
from glo_core.training.learner import Learner
from glo_core.training.meter import Meter
from glo_core.training.previews import show_previews
from glo_core.training.restore import newest_checkpoint, restore_or_begin
from glo_core.training.schedule import Phase


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A trained model, and how training ended; of several ranks, each has its own images and codes."""

    decoder: torch.nn.Module
    """The EMA decoder, in eval mode"""
    table: Table
    """The codes, with their optimizer state"""
    position: Position
    metrics: Metrics
    """`psnr` and `pca_psnr` in dB, over the training images; empty if it is not finished"""
    finished: bool
    """False if somebody asked to stop before the target, or before it was measured there"""
    images: ImageSource
    """The training images"""
    dataset: Dataset | None = None
    """Where they come from, if it is a dataset"""
    run: Path | None = None
    """The directory that keeps the run"""

    @functools.cached_property
    def model(self) -> Model:
        """The codes and the decoder as one object, with all that can be done with them."""
        return Model(
            self.decoder,
            self._codes_by_id,
            projection=self.table.config.projection,
            images_seen=self.position.images_seen,
            images=self.images,
            dataset=self.dataset,
            run=self.run,
        )

    def _codes_by_id(self) -> CodesById:
        order = np.argsort(self.table.ids)
        return self.table.ids[order], self.table.codes().detach().cpu().numpy()[order]


def train_phase(
    config: TrainConfig,
    images: ImageSource,
    phase: Phase,
    *,
    runtime: Runtime | None = None,
    run: Path | None = None,
    intervals: Intervals | None = None,
    scratch: Path | None = None,
    cache: Cache = "auto",
    autocast: Autocast = "auto",
    compile: Compile = "auto",
    warm_start: Path | None = None,
    pca_init: PcaInit | None = None,
    decoder: torch.nn.Module | None = None,
    loss: Loss | None = None,
    on_step: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train to the phase's target, going on from the run's newest checkpoint if there is one.

    Args:
        images: all shards; each rank keeps those of its lanes.
        run: directory of checkpoints and metrics; None keeps everything in memory.
        scratch: directory on a local disk for codes that `config.window` keeps out of memory.
        cache: where each rank's images lie; "auto" takes the fastest place that has room.
        autocast: whether the decoder computes in bfloat16; "auto" does where the device has it in hardware.
        compile: whether `torch.compile` compiles a step; "auto" does on a GPU.
        warm_start: a checkpoint of another run, whose decoder is where a run without a checkpoint starts.
        pca_init: the principal components of all images, if they are ready; None finds them where codes start there.
        decoder: the module of the decoder kind "module"; it is copied.
        loss: in place of the one that `config` names: prediction and target `[b, C, H, W]` in [-1, 1] to `[b]`.
        on_step: called with the images seen after every step, on every rank.

    Raises:
        UserError: if the checkpoint is damaged or of another recipe, or the disk is full.
        DivergedError: if the loss is no longer finite; the checkpoints before it stay.
    """
    runtime, intervals = runtime or SingleProcess(), intervals or Intervals()
    recipe = resolve_defaults(config, len(images.ids), images.resolution, code_shards=images.code_shards)

    # Order, start and state.
    if runtime.device.type == "cpu":
        keep_freed_memory()
    attempt = Attempt.begin(run, runtime) if run is not None else None
    reserved = training_bytes(recipe, images, runtime, decoder) if runtime.device.type == "cuda" else 0
    epochs = EpochBatches(recipe, images, runtime, cache, reserved=reserved)
    newest = newest_checkpoint(recipe, images, runtime, run)
    table = empty_table(epochs, runtime, scratch)
    learner = Learner(recipe, epochs.images, table, runtime, module=decoder, loss=loss)
    initial = InitialCodes(recipe, epochs.images, runtime, attempt, pca_init)
    begun = newest.position if newest is not None else Position(phase=phase.number)
    try:
        position = begun = restore_or_begin(learner, epochs, phase, newest, warm_start, initial, attempt)
    except StopRequestedError:
        return _result(learner, epochs, begun, run, {})
    earlier = newest.autocast if newest is not None and newest.position.phase == phase.number else None
    newest = None  # An open checkpoint would never be deleted.
    prepare_step(learner, epochs.rows, autocast, compile, earlier)
    meter = Meter(learner)
    checkpoints = CheckpointPolicy(
        learner, epochs.images, meter, intervals, attempt, lambda: refresh_statistics(learner, epochs)
    )
    stopped = False
    try:
        # Epochs of steps.
        while position.images_seen < phase.target and not stopped:
            orders = epochs.orders(position.epoch)
            learner.table.begin_epoch([of_lane.windows for of_lane in orders])
            batches = meter.waiting_for(epochs.batches(orders, position.step))
            for step, batch in enumerate(batches, position.step):
                rates = phase.rates(position.images_seen, recipe)
                sums = learner.step(batch, rates)
                before, position = position, _advance(position, epochs)
                seen = position.images_seen - before.images_seen
                learner.ema.follow(learner.decoder, before.images_seen, position.images_seen)
                if on_step is not None:
                    on_step(position.images_seen)

                # Report, checkpoint, show, stop: each on crossing its interval.
                done = position.images_seen >= phase.target
                meter.add(sums, seen)
                if done or _crossed(before, position, intervals.report):
                    meter.report(position.images_seen, rates)
                if step % AGREE_STEPS == 0:
                    stopped = checkpoints.agree(position)
                if done or stopped:
                    break
                if _crossed(before, position, intervals.checkpoint):
                    checkpoints.checkpoint(position)
                if runtime.shows_pictures and _crossed(before, position, intervals.grid):
                    show_previews(learner, epochs, position)

        # The end: a checkpoint, and the figures over one full pass.
        checkpoints.checkpoint(position)
        if runtime.shows_pictures and position.images_seen >= phase.target:
            show_previews(learner, epochs, position)
    except DivergedError:
        checkpoints.finish()  # The copy that is being written was finite.
        raise
    checkpoints.finish()
    reached = position.images_seen >= phase.target
    metrics = _measured(learner, epochs, position, attempt, trained=position != begun) if reached else {}
    return _result(learner, epochs, position, run, metrics)


def _measured(
    learner: Learner, epochs: EpochBatches, position: Position, attempt: Attempt | None, *, trained: bool
) -> Metrics:
    """The final figures of a phase that has reached its target; none if a wish to stop came before they were made."""
    if attempt is not None and learner.runtime.rank == 0:
        attempt.require_current()
        forget_fitted_codes(attempt.run)  # A crash after the commit may have left them.
    try:
        return final_figures(learner, epochs, position.images_seen, attempt, trained=trained)
    except StopRequestedError:
        return {}


def _result(
    learner: Learner, epochs: EpochBatches, position: Position, run: Path | None, metrics: Metrics
) -> TrainResult:
    """What training has made; without `metrics` it was stopped."""
    return TrainResult(
        decoder=learner.ema.decoder,
        table=learner.table,
        position=position,
        metrics=metrics,
        finished=bool(metrics),
        images=epochs.images,
        run=run,
    )


def _advance(position: Position, epochs: EpochBatches) -> Position:
    """The position after one more step."""
    seen = int(epochs.images_before[position.step + 1] - epochs.images_before[position.step])
    last = position.step + 1 == epochs.steps
    return Position(
        images_seen=position.images_seen + seen,
        phase=position.phase,
        epoch=position.epoch + last,
        step=0 if last else position.step + 1,
    )


def _crossed(before: Position, after: Position, interval: int | None) -> bool:
    """Whether a multiple of `interval` images was passed."""
    return interval is not None and after.images_seen // interval > before.images_seen // interval

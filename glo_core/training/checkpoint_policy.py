"""When to write a checkpoint and when to stop: asked of every rank, answered alike on every rank at the same step.

images seen, the clock, a machine about to go, a wish to stop -> flags summed over ranks -> checkpoint | stop | go on
"""

import time
from collections.abc import Callable
from pathlib import Path

from glo_core.checkpoint.async_writer import CheckpointWriter
from glo_core.checkpoint.layout import Position
from glo_core.data.image_source import ImageSource
from glo_core.training.agreement import Agreement
from glo_core.training.config import Intervals
from glo_core.training.learner import Learner
from glo_core.training.learner_state import checkpoint_record, decoder_files
from glo_core.training.meter import Meter

AGREE_STEPS = 8
"""Ranks tell each other every so many steps what they know."""
PREEMPTION_SECONDS = 5.0
"""Between two looks at whether a machine is about to go"""


class CheckpointPolicy:
    """Checkpoints of one training; every rank calls each method at the same step."""

    def __init__(
        self,
        learner: Learner,
        images: ImageSource,
        meter: Meter,
        intervals: Intervals,
        run: Path | None,
        refresh: Callable[[], None],
    ) -> None:
        """Keep `learner` in `run`; None keeps nothing.

        Args:
            images: of this rank.
            refresh: recomputes the averaged decoder's running statistics, before each checkpoint.
        """
        self.learner, self.meter, self.intervals, self.refresh = learner, meter, intervals, refresh
        self.runtime, self.images = learner.runtime, images
        self._writer = CheckpointWriter(run, images, self.runtime) if run is not None else None
        self._agreement = Agreement(self.runtime)
        self._since = self._looked = time.monotonic()
        self._leaving = False
        self._kept: Position | None = None

    def agree(self, position: Position) -> bool:
        """Whether to stop; on the way, begin or end a checkpoint that is due.

        Raises:
            UserError: on every rank, if a rank could not write its parts.
            DivergedError: if a checkpoint is due and the training has diverged.
        """
        now = time.monotonic()
        stop, due, look, written = self._agreement.exchange(
            self.runtime.stop_requested(),
            now - self._since >= 60 * self.intervals.checkpoint_minutes,
            now - self._looked >= PREEMPTION_SECONDS,
            self._writer is not None and self._writer.written,
        )
        if written == self.runtime.world_size:
            self.finish()
        if due:
            self.checkpoint(position)
        if look:
            self._look(position)
        return stop > 0

    def _look(self, position: Position) -> None:
        """Save what a machine holds that is about to go. Training goes on until it does, and then elsewhere."""
        self._agreement.forget()
        leaving = self.runtime.preempted()
        if leaving and not self._leaving:
            self.checkpoint(position)
            self.finish()
        self._leaving, self._looked = leaving, time.monotonic()

    def checkpoint(self, position: Position) -> None:
        """Copy the state, and let a thread write it; nothing where that was done at this position already."""
        if position == self._kept:
            return
        self.meter.require_finite(position.images_seen)
        with self.meter.timing("checkpoint"):
            self.refresh()
            if self._writer is not None:
                record = checkpoint_record(self.learner, self.images, position, self.meter.train_psnr)
                self._writer.begin(self.learner.table, record, lambda: decoder_files(self.learner))
        self._agreement.forget()
        self._kept, self._since = position, time.monotonic()

    def finish(self) -> None:
        """Wait until the last checkpoint is committed."""
        if self._writer is not None:
            with self.meter.timing("checkpoint"):
                self._writer.finish()
        self._agreement.forget()

"""When to write a checkpoint and when to stop: one decision, which every rank knows at the same step.

the clock, a preempted machine, a request to stop -> flags summed over ranks -> checkpoint | stop | continue
"""

import time
from collections.abc import Callable

from glo_core.checkpoint.async_writer import CheckpointWriter
from glo_core.checkpoint.attempt import Attempt
from glo_core.checkpoint.layout import Position
from glo_core.data.image_source import ImageSource
from glo_core.training.agreement import Agreement
from glo_core.training.config import Intervals
from glo_core.training.learner import Learner
from glo_core.training.learner_state import checkpoint_record, decoder_files
from glo_core.training.meter import Meter

AGREE_STEPS = 8
"""Steps between two exchanges of flags"""


class CheckpointPolicy:
    """Checkpoints of one training; every rank calls each method at the same step."""

    def __init__(
        self,
        learner: Learner,
        images: ImageSource,
        meter: Meter,
        intervals: Intervals,
        attempt: Attempt | None,
        refresh: Callable[[], None],
    ) -> None:
        """Write checkpoints of `learner`.

        Args:
            learner: what a checkpoint holds.
            images: of this rank.
            meter: counts the time that checkpoints take.
            intervals: how often checkpoints are written.
            attempt: of this group of ranks on its run; None writes nothing.
            refresh: recomputes the EMA decoder's running statistics, before each checkpoint.
        """
        self.learner, self.meter, self.intervals, self.refresh = learner, meter, intervals, refresh
        self.runtime, self.images = learner.runtime, images
        self._writer = CheckpointWriter(attempt, images, self.runtime) if attempt is not None else None
        self._agreement = Agreement(self.runtime)
        self._checkpoint_time = time.monotonic()
        self._saved_before_preemption = False
        self._last_position: Position | None = None
        """Of the last checkpoint"""

    def agree(self, position: Position) -> bool:
        """Begin a checkpoint that is due, commit one that is written, and return whether to stop.

        Args:
            position: where training stands.

        Raises:
            UserError, RankError: as of `CheckpointWriter.finish`.
            DivergedError: on every rank, if a checkpoint is due and the training has diverged.
        """
        stop, due, preempted, written = self._agreement.exchange(
            self.runtime.stop_requested(),
            time.monotonic() - self._checkpoint_time >= 60 * self.intervals.checkpoint_minutes,
            self.runtime.preempted(),
            self._writer is not None and self._writer.written,
        )
        if written == self.runtime.world_size:
            self.finish()
        if due:
            self.checkpoint(position)
        if preempted and not self._saved_before_preemption:
            # Committed at once, for the notice is short; training goes on until the machine is gone.
            self._saved_before_preemption = True
            self.checkpoint(position)
            self.finish()
        return stop > 0

    def checkpoint(self, position: Position) -> None:
        """Copy the state and let a thread write it, unless there is a checkpoint of this position already.

        Raises:
            UserError, RankError: as of `CheckpointWriter.finish`, about the checkpoint before.
            DivergedError: on every rank, if a loss, a gradient or a weight is not finite.
        """
        if position == self._last_position:
            return
        self.meter.require_finite(position.images_seen)
        with self.meter.timing("checkpoint"):
            self.refresh()
            if self._writer is not None:
                record = checkpoint_record(self.learner, self.images, position, self.meter.train_psnr)
                self._writer.begin(self.learner.table, record, lambda: decoder_files(self.learner))
        self._agreement.forget()
        self._last_position, self._checkpoint_time = position, time.monotonic()

    def finish(self) -> None:
        """Wait until the last checkpoint is committed.

        Raises:
            UserError, RankError: as of `CheckpointWriter.finish`.
        """
        if self._writer is not None:
            with self.meter.timing("checkpoint"):
                self._writer.finish()
        self._agreement.forget()

"""When to write a checkpoint and when to stop: asked of every rank, answered alike on every rank at the same step.

images seen, the clock, a machine about to go, a wish to stop -> flags summed over ranks -> checkpoint | stop | go on
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from glo_core.checkpoint import Position
from glo_core.config import Config
from glo_core.dataset import ImageSource
from glo_core.meter import Meter
from glo_core.runtime import Runtime
from glo_core.step import Learner
from glo_core.writer import CheckpointWriter

AGREE_STEPS = 8
"""Ranks tell each other every so many steps what they know."""
PREEMPTION_SECONDS = 5.0
"""Between two looks at whether a machine is about to go"""


@dataclass(frozen=True, kw_only=True)
class Intervals(Config):
    """How often things happen, in images unless said otherwise; none of it changes the result."""

    report: int = 10_000
    checkpoint: int = 0
    """Images between two checkpoints, besides those by time; 0 for none"""
    checkpoint_minutes: float = 10
    """Minutes between two checkpoints"""
    grid: int = 100_000
    """Pictures of the same images and of the same random codes"""

    def __post_init__(self) -> None:
        for name in ("report", "grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` interval (={getattr(self, name)}) must be at least 1 image")
        if self.checkpoint < 0:
            raise ValueError(f"`checkpoint` interval (={self.checkpoint}) must be at least 1 image, or 0 for none")
        if not self.checkpoint_minutes > 0:
            raise ValueError(f"`checkpoint_minutes` (={self.checkpoint_minutes}) must be above 0")


class Keeper:
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
        self.runtime = learner.runtime
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
                self._writer.begin(self.learner, position, self.meter.train_psnr)
        self._agreement.forget()
        self._kept, self._since = position, time.monotonic()

    def finish(self) -> None:
        """Wait until the last checkpoint is committed."""
        if self._writer is not None:
            with self.meter.timing("checkpoint"):
                self._writer.finish()
        self._agreement.forget()


class Agreement:
    """What the ranks know, summed over them, known to every rank at the same step.

    With several ranks the answer is that to the exchange before: nobody waits for the others, nor for the device.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._pending: tuple[torch.Tensor, torch.cuda.Event | None] | None = None

    def exchange(self, *flags: bool) -> list[int]:
        """Tell the others; returns how many ranks raised each flag, zeros where there is no answer yet."""
        if self.runtime.world_size == 1:
            return [int(flag) for flag in flags]
        before = self._pending
        counts = self.runtime.all_sum(torch.tensor([float(flag) for flag in flags], device=self.runtime.device))
        event = None
        if counts.is_cuda:
            counts = torch.empty(len(flags), pin_memory=True).copy_(counts, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.runtime.device))
        self._pending = counts, event
        if before is None:
            return [0] * len(flags)
        if before[1] is not None:
            before[1].synchronize()
        return [int(count) for count in before[0].tolist()]

    def forget(self) -> None:
        """Drop an answer that speaks of the time before something was done."""
        self._pending = None

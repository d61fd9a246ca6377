"""Long work besides the steps of training, which all ranks do chunk by chunk, side by side.

Between two chunks the ranks meet: none waits for another longer than a chunk takes, which is far below the time limit
of the collectives; a wish to stop ends the work on all of them; and rank 0 reports how far they are.
"""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

from glo_core.common.arrays import Int64Array, row_chunks
from glo_core.common.runtime import Runtime

T = TypeVar("T")
REPORT_SECONDS = 10.0
"""Between two reports of how far the work is; shorter work reports nothing"""


class StopRequestedError(Exception):
    """Somebody asked to stop; every rank raises this after the same chunk."""


class InStep:
    """One piece of long work, of one pass over its chunks or of several."""

    def __init__(self, runtime: Runtime, name: str, images_seen: int = 0, *, passes: int = 1) -> None:
        """Name the work.

        Args:
            runtime: this rank and its connection to the others.
            name: reports have the metric `<name>_progress`, from 0 to 1.
            images_seen: where training stands, for the reports.
            passes: number of passes at most.
        """
        self._runtime, self._metric, self._images_seen = runtime, f"{name}_progress", images_seen
        self._passes, self._passes_done = passes, 0
        self._reported = time.monotonic()

    def over(self, chunks: Iterable[T], count: int) -> Iterator[T]:
        """Yield this rank's chunks, in one pass; every rank calls this, and goes to its end.

        Args:
            chunks: of this rank.
            count: their number, which may differ between ranks.

        Raises:
            StopRequestedError: on every rank, between two chunks, if somebody asked to stop.
        """
        own, most = iter(chunks), max(self._runtime.all_gather(count))
        for number in range(most):
            if number:
                self._meet(number / most)
            if number < count:
                yield next(own)
        self._passes_done += 1

    def _meet(self, share: float) -> None:
        runtime = self._runtime
        flag = torch.tensor(float(runtime.stop_requested()), device=runtime.device)
        if runtime.all_reduce_sum(flag):
            raise StopRequestedError
        if runtime.rank == 0 and time.monotonic() - self._reported >= REPORT_SECONDS:
            self._reported = time.monotonic()
            runtime.report(self._images_seen, {self._metric: (self._passes_done + share) / self._passes})


def in_chunks(count: int, size: int, work: InStep) -> Iterator[Int64Array]:
    """The rows 0 to `count` - 1 of this rank in chunks of at most `size`, int64, in one pass of `work`."""
    chunks = list(row_chunks(count, size))
    yield from work.over(chunks, len(chunks))

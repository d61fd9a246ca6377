"""Flags of all ranks, summed without waiting."""

import torch
from torch import Tensor

from glo_core.common.runtime import Runtime


class Agreement:
    """Flags summed over the ranks; every rank has the same sums at the same step.

    With several ranks, an exchange returns the sums of the exchange before: no rank waits for another one, nor for the
    device.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._pending: tuple[Tensor, torch.cuda.Event | None] | None = None
        """The sums of the last exchange, and what says that they have reached the host"""

    def exchange(self, *flags: bool) -> list[int]:
        """Send this rank's flags; returns the number of ranks that raised each flag in the exchange before.

        The first exchange, and the first one after `forget`, return zeros. A single rank gets its own flags at once.
        Every rank calls this at the same step, with as many flags.
        """
        if self.runtime.world_size == 1:
            return [int(flag) for flag in flags]
        earlier = self._pending
        counts = self.runtime.all_reduce_sum(torch.tensor([float(flag) for flag in flags], device=self.runtime.device))
        event = None
        if counts.is_cuda:
            counts = torch.empty(len(flags), pin_memory=True).copy_(counts, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.runtime.device))
        self._pending = counts, event
        if earlier is None:
            return [0] * len(flags)
        earlier_counts, copied = earlier
        if copied is not None:
            copied.synchronize()
        return [int(count) for count in earlier_counts.tolist()]

    def forget(self) -> None:
        """Drop the sums of the last exchange, because they describe an earlier state."""
        self._pending = None

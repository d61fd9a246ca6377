"""What the ranks know, summed over them, without waiting for each other."""

import torch

from glo_core.common.runtime import Runtime


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
        counts = self.runtime.all_reduce_sum(torch.tensor([float(flag) for flag in flags], device=self.runtime.device))
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

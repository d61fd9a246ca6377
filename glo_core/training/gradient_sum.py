"""The decoder's gradients summed over ranks, bucket by bucket, while the backward pass goes on.

gradient of the last layer --> bucket full --> sum over ranks begins; the backward pass goes on to earlier layers

PyTorch's `DistributedDataParallel` does the same, but changes its buckets after the first step: a run that resumes
would add in another order, and not come back to the same bits.
"""

from collections.abc import Callable, Iterable

import torch

from glo_core.common.runtime import Runtime
from glo_core.common.shapes import Tensor

BUCKET_BYTES = 4 << 20
"""Gradients that are summed by one collective, unless one alone is larger"""


class GradientSum:
    """Sums over ranks of the gradients of some parameters; after `wait` each `grad` is that sum."""

    def __init__(self, parameters: Iterable[Tensor], runtime: Runtime, bucket_bytes: int = BUCKET_BYTES) -> None:
        """Cut `parameters` into buckets, and follow their gradients from now on.

        Args:
            parameters: in the order of the forward pass, the same ones on every rank.
            runtime: this rank and its connection to the others.
            bucket_bytes: of a bucket, unless one gradient is larger.
        """
        self._runtime = runtime
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        # The backward pass reaches the last layers first.
        self._buckets = _buckets(trained[::-1], bucket_bytes)
        self._sums = [
            torch.zeros(sum(p.numel() for p in bucket), dtype=bucket[0].dtype, device=bucket[0].device)
            for bucket in self._buckets
        ]
        self._views: dict[Tensor, Tensor] = {}
        """A parameter's part of its bucket's sums, in the parameter's memory format, as the optimizer wants it"""
        self._bucket_of: dict[Tensor, int] = {}
        for number, (bucket, sums) in enumerate(zip(self._buckets, self._sums, strict=True)):
            for parameter, part in zip(bucket, sums.split([p.numel() for p in bucket]), strict=True):
                self._views[parameter] = part.as_strided(parameter.shape, parameter.stride(), part.storage_offset())
                self._bucket_of[parameter] = number
                parameter.register_post_accumulate_grad_hook(self._take)
        self._begin()

    def _begin(self) -> None:
        self._missing = [len(bucket) for bucket in self._buckets]
        self._taken: set[Tensor] = set()
        self._waits: list[Callable[[], object]] = []

    def _take(self, parameter: Tensor) -> None:
        """Copy a gradient that is there into its bucket, and begin the sums of buckets that are full."""
        assert parameter.grad is not None
        self._views[parameter].copy_(parameter.grad)
        parameter.grad = self._views[parameter]
        self._taken.add(parameter)
        self._missing[self._bucket_of[parameter]] -= 1
        # In the order of the buckets, whatever the order in which they are full: every rank sums the same one next.
        while len(self._waits) < len(self._buckets) and not self._missing[len(self._waits)]:
            self._start()

    def _start(self) -> None:
        self._waits.append(self._runtime.start_all_reduce_sum(self._sums[len(self._waits)]))

    def wait(self) -> None:
        """Wait until the gradients of the last backward pass are summed. A parameter without one gets none."""
        for parameter in self._views.keys() - self._taken:
            self._views[parameter].zero_()
        while len(self._waits) < len(self._buckets):
            self._start()
        for wait in self._waits:
            wait()
        self._begin()


def _buckets(parameters: list[Tensor], bucket_bytes: int) -> list[list[Tensor]]:
    """`parameters` in runs of at most `bucket_bytes` and of one dtype each; at least one parameter in each."""
    buckets: list[list[Tensor]] = []
    for parameter in parameters:
        last = buckets[-1] if buckets else []
        size = sum(p.numel() * p.element_size() for p in [*last, parameter])
        if not last or size > bucket_bytes or last[0].dtype != parameter.dtype:
            buckets.append([parameter])
        else:
            last.append(parameter)
    return buckets

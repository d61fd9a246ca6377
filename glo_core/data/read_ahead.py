"""Images read ahead of the steps that need them: a thread fills buffers in turn, which are copied to the device.

rows of a step --thread: take--> buffer (pinned for a GPU) --copy that nobody waits for--> device
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from glo_core.common.arrays import Int, Int64Array
from glo_core.common.shapes import Tensor, UInt8
from glo_core.data.image_source import ImageSource

BUFFERS = 3
"""The batch in use, and two that are read ahead"""


class ReadAhead:
    """Batches of `images`, in the order in which their rows are asked for."""

    def __init__(self, images: ImageSource, device: torch.device) -> None:
        """Read `images` for steps on `device`."""
        self._images, self._device = images, device
        self._buffers: list[Tensor] = []
        self._copied: list[torch.cuda.Event | None] = []
        """By buffer: when its last copy to the device is done"""

    def batches(self, steps: Iterable[Int[Int64Array, " b"]]) -> Iterator[UInt8[Tensor, "b height width channels"]]:
        """Yield the images of each step's rows (int64 `[b]`), uint8 `[b, H, W, C]`, valid until the next one.

        Args:
            steps: as many rows in each.
        """
        reads: deque[Future[int]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="images") as pool:
            for number, rows in enumerate(steps):
                reads.append(pool.submit(self._read, number % BUFFERS, rows))
                if len(reads) == BUFFERS:
                    yield self._on_device(reads.popleft().result())
            while reads:
                yield self._on_device(reads.popleft().result())

    def _read(self, number: int, rows: Int64Array) -> int:
        """Fill a buffer; returns its number."""
        images = self._images.take(rows)
        if number == len(self._buffers):
            self._buffers.append(torch.empty_like(images, device="cpu", pin_memory=self._device.type == "cuda"))
            self._copied.append(None)
        copied = self._copied[number]
        if copied is not None:  # This thread waits, and no step.
            copied.synchronize()
        self._buffers[number].copy_(images)
        return number

    def _on_device(self, number: int) -> Tensor:
        images = self._buffers[number].to(self._device, non_blocking=True)
        if images.is_cuda:
            self._copied[number] = torch.cuda.Event()
            self._copied[number].record()  # type: ignore[union-attr]
        return images

"""Where the images of a rank lie while it trains: on the device, in host memory, or in their mapped blocks."""

from collections.abc import Sequence

import numpy as np
import torch

from glo_core.common.arrays import Int, Int64Array
from glo_core.common.memory import available_memory
from glo_core.common.shapes import Tensor, UInt8
from glo_core.data.config import Cache
from glo_core.data.image_source import ImageSource

DEVICE_SHARE, HOST_SHARE = 0.8, 0.25
"""The shares that `auto` lets images take, of the device memory that training leaves and of free host memory"""
_CHUNK = 4096
"""Images that are copied together"""


class ResidentImages:
    """Images of one rank as one tensor, on the device or in host memory; see `ImageSource`.

    An image is copied there when it is first taken: a training that resumes reads none before its first step.
    """

    def __init__(self, images: ImageSource, device: torch.device) -> None:
        """Make room for all of `images` on `device`."""
        self.device = device
        self.ids, self.shards, self.code_shards = images.ids, images.shards, images.code_shards
        self.resolution, self.channels, self.snapshot = images.resolution, images.channels, images.snapshot
        self._source = images
        shape = (len(images.ids), images.resolution, images.resolution, images.channels)
        self._images = torch.empty(shape, dtype=torch.uint8, device=device)
        self._copied = np.zeros(len(images.ids), np.bool_)
        self.complete = not len(images.ids)
        """Whether every image was copied"""

    def take(self, rows: Int[Int64Array, " b"]) -> UInt8[Tensor, "b height width channels"]:
        """The images at `rows` (int64 `[b]`), uint8 `[b, H, W, C]`, on the device that holds them."""
        if not self.complete and not self._copied[rows].all():
            self._copy(np.unique(rows[~self._copied[rows]]))
        return self.at(torch.from_numpy(rows).to(self.device, non_blocking=True))

    def at(self, rows: Int[Tensor, " b"]) -> UInt8[Tensor, "b height width channels"]:
        """The images at `rows` (int64 `[b]`, on their device), which were copied before, uint8 `[b, H, W, C]`."""
        return self._images.index_select(0, rows)

    def _copy(self, rows: Int[Int64Array, " n"]) -> None:
        device = self._images.device
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            self._images[torch.from_numpy(part).to(device)] = self._source.take(part).to(device)
        self._copied[rows] = True
        self.complete = bool(self._copied.all())

    def select(self, shards: Sequence[int]) -> ImageSource:
        """The same images of `shards` alone, in that order."""
        return self._source.select(shards)


def device_room(free: int, reserved: int) -> int:
    """Bytes that images may take of a device with `free` bytes, of which training needs `reserved`."""
    return int(DEVICE_SHARE * max(free - reserved, 0))


def place_images(
    images: ImageSource, cache: Cache, device: torch.device, ranks: int = 1, *, reserved: int = 0
) -> ImageSource:
    """Copy `images` to where `cache` says.

    Args:
        images: of this rank.
        cache: "device" and "host" copy the images there, "disk" leaves them as they are, and "auto" takes the first of
            these three that has room.
        device: that the rank trains on.
        ranks: number of ranks that may share this machine's memory.
        reserved: bytes of the device that training itself will need, and that images must leave.
    """
    size = len(images.ids) * images.resolution**2 * images.channels
    if cache == "auto":
        cache = "disk"
        if size <= HOST_SHARE * available_memory() / ranks:
            cache = "host"
        if device.type == "cuda" and size <= device_room(torch.cuda.mem_get_info(device)[0], reserved):
            cache = "device"
    if cache == "device":
        return ResidentImages(images, device)
    if cache == "host":
        return ResidentImages(images, torch.device("cpu"))
    return images

"""Where the images of a rank lie while it trains: on the device, in host memory, or in their mapped blocks."""

from collections.abc import Sequence

import numpy as np
import torch

from glo_core.common.arrays import Int, Int64Array
from glo_core.common.memory import available_memory
from glo_core.common.shapes import Tensor, UInt8
from glo_core.data.config import Cache
from glo_core.data.image_source import ImageSource

DEVICE_SHARE, HOST_SHARE = 0.5, 0.25
"""The shares of free device and host memory that `auto` lets images take"""
_CHUNK = 4096
"""Images that are copied together"""


class ResidentImages:
    """Images of one rank as one tensor, on the device or in (pinned) host memory; see `ImageSource`.

    An image is copied there when it is first taken: a training that resumes reads none before its first step.
    """

    def __init__(self, images: ImageSource, device: torch.device, *, pinned: bool = False) -> None:
        """Make room for all of `images` on `device`; `pinned` host memory can be copied to a GPU without waiting."""
        self.ids, self.shards, self.code_shards = images.ids, images.shards, images.code_shards
        self.resolution, self.channels, self.snapshot = images.resolution, images.channels, images.snapshot
        self._source = images
        shape = (len(images.ids), images.resolution, images.resolution, images.channels)
        self._images = torch.empty(shape, dtype=torch.uint8, device=device, pin_memory=pinned)
        self._copied = np.zeros(len(images.ids), np.bool_)
        self.complete = not len(images.ids)
        """Whether every image was copied"""

    def take(self, rows: Int[Int64Array, " b"]) -> UInt8[Tensor, "b height width channels"]:
        """The images at `rows` (int64 `[b]`), uint8 `[b, H, W, C]`, on the device that holds them."""
        if not self.complete and not self._copied[rows].all():
            self._copy(np.unique(rows[~self._copied[rows]]))
        return self._images[torch.from_numpy(rows).to(self._images.device, non_blocking=True)]

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


def place_images(images: ImageSource, cache: Cache, device: torch.device, ranks: int = 1) -> ImageSource:
    """Copy `images` to where `cache` says.

    Args:
        images: of this rank.
        cache: "device" and "host" copy the images there, "disk" leaves them as they are, and "auto" takes the first of
            these three that has room.
        device: that the rank trains on.
        ranks: number of ranks that may share this machine's memory.
    """
    size = len(images.ids) * images.resolution**2 * images.channels
    if cache == "auto":
        cache = "disk"
        if size <= HOST_SHARE * available_memory() / ranks:
            cache = "host"
        if device.type == "cuda" and size <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
            cache = "device"
    if cache == "device":
        return ResidentImages(images, device)
    if cache == "host":
        return ResidentImages(images, torch.device("cpu"), pinned=device.type == "cuda")
    return images

"""Where the images of a rank lie while it trains: on the device, in host memory, or in their mapped blocks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from glo_core.common.arrays import Int64Array
from glo_core.common.shapes import Tensor, UInt8
from glo_core.data.config import Cache
from glo_core.data.image_source import ImageSource

DEVICE_SHARE, HOST_SHARE = 0.5, 0.25
"""Of the free memory, what `auto` lets images take"""
_CHUNK = 4096


class ResidentImages:
    """Images of one rank as one tensor, on the device or in (pinned) host memory; see `ImageSource`."""

    def __init__(self, images: ImageSource, device: torch.device, *, pinned: bool = False) -> None:
        self.ids, self.shards, self.code_shards = images.ids, images.shards, images.code_shards
        self.resolution, self.channels, self.snapshot = images.resolution, images.channels, images.snapshot
        self._source = images
        shape = (len(images.ids), images.resolution, images.resolution, images.channels)
        self._images = torch.empty(shape, dtype=torch.uint8, device=device, pin_memory=pinned)
        for first in range(0, len(images.ids), _CHUNK):
            rows = np.arange(first, min(first + _CHUNK, len(images.ids)))
            self._images[first : first + len(rows)] = images.take(rows)

    def take(self, rows: Int64Array) -> UInt8[Tensor, "b height width channels"]:
        """Images at `rows`, uint8 `[b, H, W, C]`, where they lie."""
        return self._images[torch.from_numpy(rows).to(self._images.device, non_blocking=True)]

    def select(self, shards: Sequence[int]) -> ImageSource:
        """The same images of `shards` alone, in that order."""
        return self._source.select(shards)


def place_images(images: ImageSource, cache: Cache, device: torch.device, ranks: int = 1) -> ImageSource:
    """`images` where `cache` says; "auto" takes the fastest place with room, "disk" leaves them where they are.

    Args:
        ranks: that may share this machine's memory.
    """
    size = len(images.ids) * images.resolution**2 * images.channels
    if cache == "auto":
        cache = "disk"
        if size <= HOST_SHARE * _free_host_memory() / ranks:
            cache = "host"
        if device.type == "cuda" and size <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
            cache = "device"
    if cache == "device":
        return ResidentImages(images, device)
    if cache == "host":
        return ResidentImages(images, torch.device("cpu"), pinned=device.type == "cuda")
    return images


def _free_host_memory() -> int:
    """Bytes that can be had without swapping; 0 where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0

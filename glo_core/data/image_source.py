"""Images of some code shards: the interface that training reads, and images in memory."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from glo_core.common.arrays import Int64Array
from glo_core.common.errors import ConfigError
from glo_core.common.shapes import Tensor, UInt8
from glo_core.dataset_format.config import DecodePolicy


@runtime_checkable
class ImageSource(Protocol):
    """The images of some code shards, in the order shard by shard, ids ascending within each."""

    ids: Int64Array
    """int64 `[n]`"""
    shards: Sequence[int]
    """The code shards held, in order"""
    code_shards: int
    """S: the code shard of an image is its id modulo S"""
    resolution: int
    """Side of the square images in pixels"""
    channels: int
    """1 for gray, 3 for RGB"""
    snapshot: str
    """Digest of all images, those of other shards included; part of the order of training"""

    def take(self, rows: Int64Array) -> UInt8[Tensor, "b height width channels"]:
        """Images at `rows` (int64 `[b]`), uint8 `[b, H, W, C]`, in host memory or on the device."""
        ...

    def select(self, shards: Sequence[int]) -> "ImageSource":
        """The same source with only `shards`, in that order."""
        ...


def rows_of_shards(images: ImageSource) -> dict[int, tuple[int, int]]:
    """First row and end of each code shard that `images` holds."""
    sizes = np.bincount(images.ids % images.code_shards, minlength=images.code_shards)[list(images.shards)]
    ends = np.cumsum(sizes).tolist()
    return dict(zip(images.shards, zip([0, *ends[:-1]], ends, strict=True), strict=True)) if ends else {}


def image_tensor(images: Any) -> torch.Tensor:
    """`images` as training takes them: uint8 `[n, H, W, C]` in host memory, from a tensor or a NumPy array.

    Args:
        images: uint8 `[n, H, W, C]`, or `[n, H, W]` of gray images.

    Raises:
        ConfigError: if type, dtype or shape are others.
    """
    if not isinstance(images, torch.Tensor | np.ndarray):
        raise ConfigError(
            f"`images` (={type(images).__name__}) must be a tensor, a NumPy array, or a dataset: glo.Dataset.open(path)"
        )
    if isinstance(images, np.ndarray):
        array = np.ascontiguousarray(images)
        images = torch.from_numpy(array if array.flags.writeable else array.copy())
    tensor: torch.Tensor = images.cpu()
    shape = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    if tensor.dtype != torch.uint8:
        remedy = "multiply values in [0, 1] by 255, round them, and convert them to uint8"
        raise ConfigError(f"`images` (={shape}) must be uint8, 0 to 255; {remedy}")
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(3)
    if tensor.ndim == 4 and tensor.shape[1] in (1, 3) and tensor.shape[3] not in (1, 3):
        raise ConfigError(f"`images` (={shape}) must be [n, H, W, C]: channels last; images.permute(0, 2, 3, 1)")
    if tensor.ndim != 4:
        raise ConfigError(f"`images` (={shape}) must be [n, H, W, C], or [n, H, W] of gray images")
    return tensor


class TensorImages:
    """Images in memory; see `ImageSource`."""

    def __init__(self, images: Tensor, ids: Int64Array | None = None, *, code_shards: int = 32) -> None:
        """Hold `images`, uint8 `[n, H, W, C]`, under `ids` (int64 `[n]`, unique; by default 0 to n-1).

        Raises:
            ConfigError: if dtype or shape are others, or the side is not 4 * 2^n.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2]:
            raise ConfigError(
                f"`images` (={images.dtype} {list(images.shape)}) must be uint8 [n, side, side, channels]"
            )
        try:
            DecodePolicy(resolution=images.shape[1], channels=images.shape[3])
        except ValueError as error:  # The sizes of a tensor are those that a dataset may have.
            raise ConfigError(f"`images` (={list(images.shape)}): {error}") from None
        self._all, self._all_ids = images, np.arange(len(images)) if ids is None else ids
        self.code_shards, self.resolution, self.channels = code_shards, images.shape[1], images.shape[3]
        digest = hashlib.blake2b(self._all_ids.astype("<i8").tobytes(), digest_size=16)
        digest.update(np.ascontiguousarray(images.numpy()).data)
        self.snapshot = digest.hexdigest()
        self._hold(range(code_shards))

    def _hold(self, shards: Sequence[int]) -> None:
        self.shards: Sequence[int] = list(shards)
        by_shard = [np.flatnonzero(self._all_ids % self.code_shards == shard) for shard in shards]
        # Row of this source -> row of the tensor, shard by shard, ids ascending within each.
        by_id = [rows[np.argsort(self._all_ids[rows])] for rows in by_shard]
        self._rows = np.concatenate([*by_id, np.empty(0, np.int64)]).astype(np.int64)
        self.ids: Int64Array = self._all_ids[self._rows]

    def take(self, rows: Int64Array) -> UInt8[Tensor, "b height width channels"]:
        """Images at `rows` (int64 `[b]`), uint8 `[b, H, W, C]` in host memory."""
        return self._all[torch.from_numpy(self._rows[rows])]

    def select(self, shards: Sequence[int]) -> "TensorImages":
        """The same images of `shards` alone, in that order."""
        selected = object.__new__(TensorImages)
        selected.__dict__.update(self.__dict__)
        selected._hold(shards)
        return selected

    def first(self, count: int) -> "TensorImages":
        """The source of the first `count` images of the tensor alone."""
        return TensorImages(self._all[:count], self._all_ids[:count], code_shards=self.code_shards)
